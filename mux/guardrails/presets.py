"""Ready-made rules.

Every pattern bounds what it holds back, so that prose streams on at most a word late.

Sources:
    secrets: the public formats that GitHub secret scanning, gitleaks and detect-secrets document.
    card: ISO/IEC 7812 (length, issuer prefixes) with the Luhn check of its annex B.
    phone: E.164 (at most 15 digits), and the national forms that people write with separators.
    injection: phrases as in the OWASP LLM Top 10 (LLM01), the deepset prompt-injections and the Lakera
        "ignore instructions" collections, in eight languages, as short as they stay telling; and the special
        tokens of the model families' chat templates. A list of our own: of the detectors on PyPI the light
        one that is kept up (aicordon's Picket) flagged 6 of 58 pages of technical documentation when it was
        measured, and the others want a model or a service. A function rule can ask one of those.
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

_GAP = r"\s{1,3}"
_OLD = (
    r"(?:(?:all|any|every(?:thing)?|the|your|my|of|these|those|previous|prior|above|earlier|preceding|foregoing"
    rf"|initial|original|system|safety|security|developer){_GAP}){{1,5}}"
)
_ORDERS = (
    r"(?:instructions?|prompts?|rules?|directions?|guidelines?|directives?|messages?|context|constraints?"
    r"|restrictions?|training|programming)\b"
)
_PHRASES = "|".join(
    [
        rf"(?:ignore|disregard|forget|override|overrule|bypass|discard|skip|drop){_GAP}{_OLD}{_ORDERS}",
        rf"(?:ignore|disregard|forget){_GAP}(?:everything|all|anything){_GAP}(?:(?:that|you){_GAP}){{0,3}}"
        r"(?:above|before|were\s{1,3}told|have\s{1,3}been\s{1,3}told|know|said\s{1,3}before)\b",
        rf"do{_GAP}not{_GAP}follow{_GAP}{_OLD}{_ORDERS}",
        rf"you{_GAP}are{_GAP}now{_GAP}(?:in{_GAP})?(?:an?{_GAP})?(?:DAN|developer\s{{1,3}}mode|jailbroken"
        r"|unrestricted|unfiltered|uncensored)\b",
        rf"(?:enter|enable|activate|switch{_GAP}to){_GAP}(?:DAN|developer|god|jailbreak|debug|admin)\s{{1,3}}mode\b",
        rf"new{_GAP}(?:system{_GAP}(?:prompt|instructions?)|instructions?)\s{{0,3}}:",
        rf"(?:reveal|print|show|repeat|output|display|disclose|leak|tell{_GAP}me){_GAP}(?:me{_GAP})?(?:your|the)"
        rf"{_GAP}(?:(?:hidden|full|initial|original|entire|exact|secret){_GAP})?system{_GAP}(?:prompt|message"
        r"|instructions?)\b",
        rf"do{_GAP}not{_GAP}(?:tell|inform|alert|notify|mention{_GAP}(?:this|it){_GAP}to|reveal{_GAP}(?:this|it)"
        rf"{_GAP}to){_GAP}the{_GAP}user\b",
        rf"without{_GAP}(?:telling|informing|alerting|notifying|asking){_GAP}the{_GAP}user\b",
        # the first of these in other languages
        rf"(?:ignorier(?:e|en{_GAP}sie)?|missachte|vergiss){_GAP}(?:bitte{_GAP})?(?:(?:alle|die|deine|ihre"
        rf"|vorherigen|bisherigen|obigen|früheren){_GAP}){{1,4}}(?:anweisungen|instruktionen|befehle|regeln"
        r"|vorgaben)\b",
        rf"(?:ignore[zr]?|oublie[zr]?){_GAP}(?:(?:toutes|les|tes|vos|ces){_GAP}){{1,3}}(?:instructions|consignes"
        r"|règles)\b",
        rf"(?:ignora|ignore|olvida|olvide){_GAP}(?:(?:todas|las|tus|sus|estas|anteriores){_GAP}){{1,4}}"
        r"(?:instrucciones|reglas|indicaciones|órdenes)\b",
        rf"(?:ignora|dimentica){_GAP}(?:(?:tutte|le|tue|precedenti){_GAP}){{1,4}}(?:istruzioni|regole)\b",
        rf"(?:ignore|esqueça|desconsidere){_GAP}(?:(?:todas|as|suas|anteriores){_GAP}){{1,4}}(?:instruções|regras"
        r"|ordens)\b",
        rf"(?:игнорируй(?:те)?|забудь(?:те)?){_GAP}(?:(?:все|свои|твои|предыдущие|прежние){_GAP}){{1,4}}"
        r"(?:инструкции|указания|правила)\b",
    ]
)
# Chinese and Japanese stand without spaces, so there is no word boundary to look for
_UNSPACED = (
    r"(?:忽略|无视|無視|忘记)(?:掉)?(?:你)?(?:之前|以前|以上|先前|上面|前面)?(?:的)?(?:所有|全部|一切)?(?:的)?"
    r"(?:指令|指示|提示|规则)"
    r"|(?:以前|これまで|上記|前)の(?:すべての)?(?:指示|命令|指令)を(?:すべて)?無視"
)
# What chat templates of model families use as borders (their tokenizers' special tokens)
_TEMPLATES = "|".join(
    [
        r"<\|(?:im_start|im_end|im_sep|system|user|assistant|developer|endoftext|endofprompt|begin_of_text"
        r"|end_of_text|start_header_id|end_header_id|eot_id|eom_id|python_tag|start|end|message|channel|call"
        r"|return|observation|end_of_turn|start_of_role|end_of_role|tool_call|tool_response"
        r"|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|SYSTEM_TOKEN|USER_TOKEN|CHATBOT_TOKEN)\|>",
        r"<｜(?:User|Assistant|System|begin▁of▁sentence|end▁of▁sentence|tool▁calls▁begin)｜>",
        r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]|<</?SYS>>|<(?:start|end)_of_turn>",
    ]
)
_INJECTION = "|".join(
    [
        rf"(?i:(?<!\w)(?:{_PHRASES}))",
        _UNSPACED,
        _TEMPLATES,
        r"(?i:</?(?:system|system_prompt|system-prompt|instructions|important_instructions)>)",
        r"(?i:\[(?:system|admin|developer)\s{0,2}(?:message|override|note|prompt)?\s{0,2}\])",
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
