"""Ready-made rules.

Every pattern bounds what it holds back, so that prose streams on at most a word late.

Sources:
    secrets: the public formats that GitHub secret scanning, gitleaks and detect-secrets document.
    card: ISO/IEC 7812 (length, issuer prefixes) with the Luhn check of its annex B.
    phone: E.164 (at most 15 digits), and the national forms that people write with separators.
    injection: phrases and chat-template markers from the OWASP LLM Top 10 (LLM01), the deepset
        prompt-injections and the Lakera "ignore instructions" collections, as short as they stay telling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["PRESETS", "Preset", "Refine", "luhn"]

Refine: TypeAlias = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Preset:
    """A pattern and, where a pattern can't say it all, what narrows its matches down."""

    pattern: str
    refine: Refine | None = None


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if i % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _cards(text: str) -> list[tuple[int, int]]:
    """Card numbers in a run of digits and separators, longest first at each group's beginning."""
    places = [i for i, c in enumerate(text) if c.isdigit()]
    spans: list[tuple[int, int]] = []
    first = 0
    while first <= len(places) - 13:
        starts_group = first == 0 or places[first] - places[first - 1] > 1
        size = _card_size("".join(text[i] for i in places[first : first + 19])) if starts_group else 0
        if size:
            spans.append((places[first], places[first + size - 1] + 1))
        first += size or 1
    return spans


def _card_size(digits: str) -> int:
    if digits[0] not in "23456":  # issuers of payment cards; 1 airlines, 7-9 fuel, health, national
        return 0
    sizes = range(min(19, len(digits)), 12, -1)
    return next((n for n in sizes if luhn(digits[:n]) and len(set(digits[:n])) > 1), 0)


_TOKENS = "|".join(
    [
        r"sk-(?:proj-|svcacct-|admin-|ant-|or-v1-)?[A-Za-z0-9_-]{20,200}",  # OpenAI, Anthropic, OpenRouter
        r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",  # AWS access key id
        r"gh[pousr]_[A-Za-z0-9]{36}",  # GitHub tokens
        r"github_pat_[A-Za-z0-9_]{60}",
        r"glpat-[A-Za-z0-9_-]{20}",  # GitLab
        r"xox[abeoprs]-[A-Za-z0-9-]{10}",  # Slack
        r"https://hooks\.slack\.com/services/[A-Za-z0-9/_-]{20}",
        r"AIza[A-Za-z0-9_-]{35}",  # Google API
        r"ya29\.[A-Za-z0-9_-]{20}",  # Google OAuth
        r"[rs]k_(?:live|test)_[A-Za-z0-9]{16}",  # Stripe
        r"whsec_[A-Za-z0-9]{24}",
        r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16}",  # SendGrid
        r"hf_[A-Za-z0-9]{30}",  # Hugging Face
        r"npm_[A-Za-z0-9]{36}",
        r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{20}",
        r"dop_v1_[a-f0-9]{64}",  # DigitalOcean
        r"ey[JK][A-Za-z0-9_-]{10,600}\.ey[JK][A-Za-z0-9_-]{10,1200}\.[A-Za-z0-9_-]{10}",  # JWT
        r"[a-z][a-z0-9+]{1,15}://[^\s:/@]{1,64}:[^\s:/@]{3,64}@",  # a URL with a password
    ]
)
# One look behind for all of them: at each place it settles nearly everything
_SECRETS = rf"(?<!\w)(?:{_TOKENS})|-----BEGIN (?:[A-Z]{{2,12}} ){{0,2}}PRIVATE KEY(?: BLOCK)?-----"

_PHRASES = "|".join(
    [
        r"(?:ignore|disregard|forget|override|bypass)\s{1,3}(?:(?:all|any|every|the|your|my|of|these|those"
        r"|previous|prior|above|earlier|preceding|foregoing|system|safety)\s{1,3}){1,5}"
        r"(?:instructions?|prompts?|rules?|directions?|guidelines?|directives?|messages?|context)\b",
        r"(?:you\s{1,3}are\s{1,3}now\s{1,3}(?:in\s{1,3})?(?:a\s{1,3})?(?:DAN|developer\s{1,3}mode|jailbroken"
        r"|unrestricted)\b)",
        r"(?:new\s{1,3}(?:system\s{1,3}(?:prompt|instructions?)|instructions?)\s{0,3}:)",
        r"(?:(?:reveal|print|show|repeat|output)\s{1,3}(?:me\s{1,3})?(?:your|the)\s{1,3}(?:hidden\s{1,3}|full\s{1,3}"
        r"|initial\s{1,3})?system\s{1,3}prompt\b)",
        r"(?:do\s{1,3}not\s{1,3}(?:tell|inform|alert)\s{1,3}the\s{1,3}user\b)",
    ]
)
_INJECTION = "|".join(
    [
        rf"(?i:(?<!\w)(?:{_PHRASES}))",
        r"<\|(?:im_start|im_end|system|user|assistant|endoftext|start_header_id|eot_id)\|>",
        r"\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>",
        r"(?i:</?(?:system|system_prompt|instructions)>)",
        r"(?i:\[(?:system|admin)\s{0,2}(?:message|override|note)?\s{0,2}\])",
    ]
)

PRESETS: Mapping[str, Preset] = {
    "secrets": Preset(_SECRETS),
    "email": Preset(
        r"(?<![\w.+%-])[A-Za-z0-9_+%][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![\w-])"
    ),
    "phone": Preset(
        r"(?<![\w.+-])(?:\+[1-9]\d{0,2}[ .\u00a0-]?"
        r"(?:\(0?\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .\u00a0-]?\d{2,5}){1,4}"
        r"|\(\d{2,5}\)[ .-]?\d{3,4}[ .-]?\d{3,5}|\d{3}[.-]\d{3}[.-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})"
        r"(?![\w-])"
    ),
    "card": Preset(r"(?<![\w.])\d(?:[ \u00a0-]?\d){12,22}(?![ \u00a0-]?\d)(?!\w)", _cards),
    "injection": Preset(_INJECTION),
}
