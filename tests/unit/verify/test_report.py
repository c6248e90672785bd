"""What a person reads, and what a script goes by."""

import pytest

from glm_cluster.verify.report import Check, Report, render

CHECKS = (
    Check(name="config", detail="15 keys", verdict="equal"),
    Check(name="logits (engine)", detail="202 positions", verdict="within", bound=1e-3, measured=3.52e-06),
    Check(name="chat template", detail="the checkpoint has none", verdict="skipped"),
)
BROKEN = (
    Check(name="greedy (tp 2)", detail="new token 3 of prompt 1 is 7 here", verdict="different"),
    Check(name="padding rows", detail="id 9 was sampled", verdict="different"),
)


def _report(*checks: Check, is_self: bool = False) -> Report:
    against = "our own plain forward" if is_self else "transformers 5.23.0"
    return Report(model="/models/glm", against=against, is_self_check=is_self, facts=("torch 2",), checks=checks)


def test_the_table_is_aligned_and_ends_in_a_verdict() -> None:
    assert render(_report(*CHECKS)).split("\n") == [
        "/models/glm, compared with transformers 5.23.0",
        "torch 2",
        "",
        "check            verdict  measured  bound    detail",
        "---------------  -------  --------  -------",
        "config           equal                       15 keys",
        "logits (engine)  within   3.5e-06   1.0e-03  202 positions",
        "chat template    skipped                     the checkpoint has none",
        "",
        "verified: equal to transformers 5.23.0 (not compared: chat template)",
    ]


@pytest.mark.parametrize("is_self", [True, False])
def test_the_first_difference_is_the_verdict(is_self: bool) -> None:
    report = _report(*CHECKS, *BROKEN, is_self=is_self)
    assert report.first_difference is BROKEN[0]
    assert render(report).endswith("\nDIFFERENT: greedy (tp 2): new token 3 of prompt 1 is 7 here")
    assert "verified" not in render(report)
    assert _report(*CHECKS).first_difference is None


def test_a_self_check_never_claims_transformers() -> None:
    text = render(_report(*CHECKS, is_self=True))
    assert text.startswith("/models/glm, self-check against our own plain forward\n")
    assert text.endswith("\nself-check passed against our own plain forward (not compared: chat template)")
    assert "transformers" not in text
    assert "verified" not in text
