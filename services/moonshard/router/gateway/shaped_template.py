"""A checkpoint's chat template with notes for the router (`marks.py`), for gateways that render prompts themselves.

Written in the Jinja that both jinja2 and minijinja read. In front of the published text every user's string has its
spellings of special tokens broken up, and tool call ids of other makers become the model's own (specification 5.4);
behind it stand the marks.
"""

from collections.abc import Iterable

from moonshard.router.gateway.marks import Marks

# Most special tokens begin alike, so breaking up these two characters breaks all of them.
COMMON = "<|"

_BEFORE = """\
{%- set _kept = namespace(messages=[], ids=[], num_calls=0) -%}
{%- for _message in messages -%}
  {%- set _new = namespace(message=_message) -%}
  {%- for _field in ['role', 'name', 'content', 'reasoning_content'] -%}
    {%- if _message[_field] is string -%}
      {%- set _new.message = dict(_new.message, **{_field: PLAIN(_message[_field])}) -%}
    {%- endif -%}
  {%- endfor -%}
  {%- if _message['content'] is not string and _message['content'] -%}
    {%- set _kept.parts = [] -%}
    {%- for _part in _message['content'] -%}
      {%- set _kept.parts = _kept.parts + [dict(_part, text=PLAIN(_part['text'])) if _part['text'] else _part] -%}
    {%- endfor -%}
    {%- set _new.message = dict(_new.message, content=_kept.parts) -%}
  {%- endif -%}
  {%- if _message['tool_calls'] -%}
    {%- set _kept.calls = [] -%}
    {%- for _call in _message['tool_calls'] -%}
      {%- set _id = _call['id'] | string -%}
      {%- if _id[:10] != 'functions.' -%}
        {%- set _id = 'functions.' ~ _call['function']['name'] ~ ':' ~ _kept.num_calls -%}
        {%- set _kept.ids = _kept.ids + [[_call['id'], _id]] -%}
      {%- endif -%}
      {%- set _kept.num_calls = _kept.num_calls + 1 -%}
      {%- set _arguments = _call['function']['arguments'] -%}
      {%- set _arguments = _arguments if _arguments is string else _arguments | tojson -%}
      {%- set _function = dict(_call['function'], arguments=PLAIN(_arguments)) -%}
      {%- set _kept.calls = _kept.calls + [dict(_call, id=PLAIN(_id), function=_function)] -%}
    {%- endfor -%}
    {%- set _new.message = dict(_new.message, tool_calls=_kept.calls) -%}
  {%- endif -%}
  {%- if _message['tool_call_id'] -%}
    {%- set _kept.id = _message['tool_call_id'] | string -%}
    {%- for _pair in _kept.ids -%}
      {%- if _pair[0] == _message['tool_call_id'] -%}{%- set _kept.id = _pair[1] -%}{%- endif -%}
    {%- endfor -%}
    {%- set _new.message = dict(_new.message, tool_call_id=PLAIN(_kept.id)) -%}
  {%- endif -%}
  {%- set _kept.messages = _kept.messages + [_new.message] -%}
{%- endfor -%}
{%- set messages = _kept.messages -%}
{%- if tools_ts_str is string -%}
  {%- set tools_ts_str = PLAIN(tools_ts_str) -%}
{%- elif tools -%}
  {%- set tools_ts_str = PLAIN(tools | tojson(separators=(',', ':'))) -%}
{%- endif -%}
"""

_BEHIND = """\
{%- if add_generation_prompt -%}
  {%- if thinking is defined and thinking is true -%}THINKING{%- endif -%}
  {%- if tools -%}TOOLS{{ tools | tojson }}{%- endif -%}
{%- endif -%}
"""


def shape_template(source: str, marks: Marks, special_names: Iterable[str]) -> str:
    """The template to give to gateways. special_names: the spellings of special tokens that are to be broken up."""
    names = sorted(special_names)
    broken = [COMMON] if any(name.startswith(COMMON) for name in names) else []
    broken += [name for name in names if not name.startswith(COMMON)]
    macro = _plain_macro(broken, marks.escape.name)
    behind = _BEHIND.replace("THINKING", marks.thinking.name).replace("TOOLS", marks.tools.name)
    return macro + _BEFORE.replace("PLAIN(", "_plain(") + source + behind


def _plain_macro(broken: Iterable[str], escape: str) -> str:
    """A macro that puts the escape behind the first character of every text in `broken`."""
    steps = "".join(f" | replace('{text}', '{text[0]}{escape}{text[1:]}')" for text in broken)
    return "{%- macro _plain(_text) -%}{{- _text" + steps + " -}}{%- endmacro -%}\n"
