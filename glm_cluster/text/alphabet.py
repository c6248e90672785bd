"""GPT-2's alphabet: one printable character for each byte, in which a byte-level vocabulary spells its tokens.

Printable Latin-1 characters stand for themselves, the others for U+0100 onwards. Refuses to know tokens' ids.
"""

PRINTABLE = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
CHARACTER_OF = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(0x100 + index) for index, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}


def spell(token: bytes) -> str:
    """Return the token as a vocabulary writes it."""
    return token.decode("latin-1").translate(CHARACTER_OF)


def unspell(token: str) -> bytes:
    """Return the bytes that a vocabulary's token stands for; one not spelt in the alphabet stands for itself."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()
