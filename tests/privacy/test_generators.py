"""The generators against the known answers that their authors publish."""

from __future__ import annotations

import pytest

from dpcomm import _core


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_random123_answers(counter: str, key: str, answer: str) -> None:
    words = [int(word, 16) for word in counter.split()]
    block = _core.philox4x32_block(words, [int(word, 16) for word in key.split()])
    assert block == [int(word, 16) for word in answer.split()]


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "answer"),
    [
        (  # section 2.3.2
            bytes(range(32)), 1, "000000090000004a00000000",
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        ),
        (  # appendix A.1, test vector 1
            bytes(32), 0, "000000000000000000000000",
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
            "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
    ],
)  # fmt: skip
def test_chacha20_gives_rfc_8439_answers(key: bytes, counter: int, nonce: str, answer: str) -> None:
    raw = bytes.fromhex(nonce)
    words = [int.from_bytes(raw[i : i + 4], "little") for i in (0, 4, 8)]
    block = _core.chacha20_block(key, [counter, *words])
    assert b"".join(word.to_bytes(4, "little") for word in block) == bytes.fromhex(answer)
