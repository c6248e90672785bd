"""A checkpoint as this package runs it, compared with Hugging Face's own implementation on this machine."""

from glm_cluster.verify.report import Check as Check
from glm_cluster.verify.report import Report as Report
from glm_cluster.verify.report import render as render
from glm_cluster.verify.verification import verify as verify
