"""Chat templates written in the styles of well-known model families; only the markers are theirs."""

from __future__ import annotations

LLAMA_2 = r"""
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = false -%}{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('after the system message, user and assistant take turns') -}}
  {%- endif -%}
  {%- if loop.first and system is not false -%}
    {%- set said = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + turn['content'] -%}
  {%- else -%}
    {%- set said = turn['content'] -%}
  {%- endif -%}
  {%- if turn['role'] == 'user' -%}
    {{- bos_token ~ '[INST] ' ~ said.strip() ~ ' [/INST]' -}}
  {%- elif turn['role'] == 'assistant' -%}
    {{- ' ' ~ said | trim ~ ' ' ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = r"""
{%- set tools = custom_tools if custom_tools is defined else tools %}
{%- set is_early = tools_in_user_message is defined and tools_in_user_message is false %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "1 Jan 2024" %}
{%- endif %}
{%- macro header(role) %}{{ "<|start_header_id|>" ~ role ~ "<|end_header_id|>\n\n" }}{% endmacro %}
{%- macro said(content) %}
    {%- if content is string %}{{ content | trim }}
    {%- else %}
        {%- for part in content if part["type"] == "text" %}{{ part["text"] | trim }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- macro listed() %}
    {%- for tool in tools %}{{ tool | tojson(indent=4) ~ "\n\n" }}{% endfor %}
{%- endmacro %}
{%- set has_system = messages[0].role == "system" %}
{{- bos_token ~ header("system") ~ ("Environment: ipython\n" if tools is not none) ~ "Today Date: " + date_string }}
{{- "\n\n" ~ ("Functions to call:" ~ listed() if tools and is_early) }}
{{- (said(messages[0].content) if has_system) ~ "<|eot_id|>" }}
{%- set turns = messages[1:] if has_system else messages %}
{%- if tools is not none and not is_early %}
    {%- if turns | length == 0 %}{{ raise_exception("the tools need a first user message") }}{% endif %}
    {{- header("user") ~ "Call one of these as JSON.\n\n" ~ listed() ~ said(turns[0].content) ~ "<|eot_id|>" }}
    {%- set turns = turns[1:] %}
{%- endif %}
{%- for turn in turns %}
    {%- if "tool_calls" in turn %}
        {%- if turn.tool_calls | length > 1 %}{{ raise_exception("one call at a time") }}{% endif %}
        {%- set function = turn.tool_calls[0].function %}
        {{- header("assistant") ~ '{"name": "' ~ function.name ~ '", "parameters": ' }}
        {{- function.arguments | tojson ~ "}" }}
    {%- elif turn.role in ("tool", "ipython") %}
        {%- set is_data = turn.content is mapping or (turn.content is iterable and turn.content is not string) %}
        {{- header("ipython") ~ (turn.content | tojson if is_data else turn.content) }}
    {%- else %}
        {{- header(turn["role"]) ~ said(turn["content"]) }}
    {%- endif %}
    {{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ header("assistant") }}{% endif %}
"""

MISTRAL_V1 = (
    "{%- macro stop() %}{{ raise_exception('user and assistant take turns, the user begins') }}{% endmacro %}"
    "{{ bos_token }}{% for turn in messages %}{% set wanted = ['user', 'assistant'][loop.index0 % 2] %}"
    "{% if turn['role'] != wanted %}{{ stop() }}"
    "{% elif wanted == 'user' %}{{ '[INST] ' + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ turn['content'] + eos_token ~ ' ' }}{% endif %}{% endfor %}"
)

MISTRAL_V3 = r"""
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set users = turns | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for m in turns %}
    {%- set is_call = m.tool_calls is defined and m.tool_calls is not none %}
    {%- if not (m.role in ["tool", "tool_results"] or is_call) %}
        {%- if (m["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("user and assistant do not take turns at " ~ loop.index0) }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m["role"] == "user" %}
        {%- if tools is defined and tools is not none and (m == users[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.items() if key != "return" %}
                    {%- if value is string %}{{- '"' + key + '": "' + value + '"' }}
                    {%- else %}{{- '"' + key + '": ' + value | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system is defined %}{{- "[INST] " + system + "\n\n" + m["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + m["content"] + "[/INST]" }}{%- endif %}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in m.tool_calls %}
            {%- set written = call.function | tojson %}{{- written[:-1] }}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception("an id has 9 letters") }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif m["role"] == "assistant" %}{{- " " + m["content"] | trim + eos_token }}
    {%- elif m["role"] == "tool_results" or m["role"] == "tool" %}
        {%- if m.content is defined and m.content.content is defined %}{%- set content = m.content.content %}
        {%- else %}{%- set content = m.content %}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content | string + ", " }}
        {{- '"call_id": "' + (m.tool_call_id | default("none", true)) + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception("a role that is not known: " + m.role) }}{%- endif %}
{%- endfor %}
"""

MISTRAL_V7 = r"""{%- set today = strftime_now("%Y-%m-%d") %}
{%- set default_system = "You are an assistant.\nThe date is " + today + "." %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}{%- set system = messages[0]['content'] %}
    {%- else %}{%- set system = messages[0]['content'][0]['text'] %}{%- endif %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = default_system %}{%- set turns = messages %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}
                {%- elif block['type'] in ['image', 'image_url'] %}{{- '[IMG]' }}
                {%- else %}{{- raise_exception('only text and images') }}{%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' ~ message['content'] ~ '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {%- if message['content'] is string %}{{- message['content'] + eos_token }}
        {%- else %}{{- message['content'][0]['text'] + eos_token }}{%- endif %}
    {%- else %}{{- raise_exception('only user, system and assistant are known') }}{%- endif %}
{%- endfor %}
"""

QWEN_2_5 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}
    {%- else %}{{- 'You are a helpful assistant.' }}{%- endif %}
    {{- "\n\n# Tools\n\nSignatures inside <tools></tools>:\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools>\n\nAnswer within <tool_call></tool_call>.<|im_end|>\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set is_plain = message.role == "assistant" and not message.tool_calls %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or is_plain %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

QWEN_3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + ('\n\n' if tools else '') }}
{%- elif tools %}{{- '<|im_start|>system\n' }}{%- endif %}
{%- if tools %}
    {{- '<tools>' }}{%- for tool in tools %}{{- '\n' ~ tool | tojson }}{%- endfor %}{{- '\n</tools>' }}
{%- endif %}
{%- if tools or messages[0].role == 'system' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string
          and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}{%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or loop.previtem.role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""

GEMMA_2 = r"""
{%- set names = {"assistant": "model"} -%}
{{ bos_token }}
{%- for turn in messages -%}
    {%- if turn.role == "system" -%}{{ raise_exception("there is no system role") }}
    {%- elif loop.index0 is even and turn.role != "user" or loop.index0 is odd and turn.role == "user" -%}
        {{ raise_exception("a user begins, then both take turns") }}
    {%- endif -%}
    {{ "<start_of_turn>" + names.get(turn.role, turn.role) + "\n" + turn.content | trim + "<end_of_turn>\n" }}
{%- endfor -%}
{{ "<start_of_turn>model\n" if add_generation_prompt }}
"""

GEMMA_3 = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("the order is user, assistant, user, ...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("this content is of no known type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

PHI_3 = r"""
{%- for turn in messages if turn.role in ['system', 'user', 'assistant'] %}
    {%- if turn.role != 'system' or turn.content %}
        {{- '<|%|>\n' | replace('%', turn.role) ~ (turn.content ~ '<|end|>\n') }}
    {%- endif %}
{%- endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}
"""

PHI_4 = r"""
{%- for turn in messages -%}
    {{- '<|im_start|>' ~ turn.role ~ '<|im_sep|>' -}}
    {%- generation -%}
        {{- turn.content + ('<|tool|>' + turn.tools + '<|/tool|>' if turn.tools is defined else '') + '<|im_end|>' -}}
    {%- endgeneration -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant<|im_sep|>{%- endif -%}
"""

DEEPSEEK_R1 = r"""
{%- set state = namespace(system='', is_after_tool=false) -%}
{%- for turn in messages if turn.role == 'system' -%}{%- set state.system = turn.content -%}{%- endfor -%}
{{- bos_token + state.system -}}
{%- for turn in messages -%}
    {%- if state.is_after_tool and turn.role != 'tool' -%}{{- '<｜tool▁outputs▁end｜>' -}}{%- endif -%}
    {%- if turn.role == 'user' -%}
        {{- '<｜User｜>' + turn['content'] -}}
    {%- elif turn.role == 'tool' -%}
        {{- '<｜tool▁outputs▁begin｜>' if not state.is_after_tool -}}
        {{- '<｜tool▁output▁begin｜>' + turn.content + '<｜tool▁output▁end｜>' -}}
    {%- elif turn.role == 'assistant' and turn.tool_calls is defined -%}
        {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' -}}
        {%- for call in turn['tool_calls'] -%}
            {{- '<｜tool▁call▁begin｜>' ~ call.type ~ '<｜tool▁sep｜>' ~ call['function']['name'] -}}
            {{- '\n```json\n' ~ call['function']['arguments'] | tojson ~ '\n```<｜tool▁call▁end｜>' -}}
        {%- endfor -%}
        {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' -}}
    {%- elif turn.role == 'assistant' -%}
        {{- '<｜Assistant｜>' if not state.is_after_tool -}}
        {{- turn.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' -}}
    {%- endif -%}
    {%- set state.is_after_tool = turn.role == 'tool' -%}
{%- endfor -%}
{{- '<｜tool▁outputs▁end｜>' if state.is_after_tool -}}
{%- if add_generation_prompt and not state.is_after_tool -%}{{- '<｜Assistant｜><think>\n' -}}{%- endif -%}
"""

SMOLLM_3 = r"""
{# what the model shall know is said first #}
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- set custom = namespace(text="") -%}
{%- if messages[0].role == "system" -%}
  {%- set said = messages[0].content -%}
  {%- if "/no_think" in said -%}{%- set mode = "/no_think" -%}
  {%- elif "/think" in said -%}{%- set mode = "/think" -%}{%- endif -%}
  {%- set custom.text = said.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\n" -}}
{%- if "/system_override" in custom.text -%}
  {{- custom.text.replace("/system_override", "").rstrip() ~ "<|im_end|>\n" -}}
{%- else -%}
  {{- "## Metadata\n\nReasoning Mode: " + mode + "\nToday Date: " ~ strftime_now("%d %B %Y") ~ "\n\n" -}}
  {%- if custom.text -%}{{- custom.text + "\n\n" -}}{%- endif -%}
  {%- if xml_tools or python_tools or tools -%}
    {%- set ns = namespace(xml="<tools>") -%}
    {%- for tool in (xml_tools or tools or []) -%}{%- set ns.xml = ns.xml ~ (tool | string) ~ "\n" -%}{%- endfor -%}
    {{- "### Tools\n\n" ~ ns.xml + "</tools>" -}}
  {%- endif -%}
  {{- "\n<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else "" -%}
  {%- if message.role == "user" -%}{{ "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" }}
  {%- elif message.role == "assistant" -%}
    {%- generation -%}
    {%- if mode == "/think" -%}{{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- else -%}{{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- endif -%}
    {%- endgeneration -%}
  {%- elif message.role == "tool" -%}{{ "<|im_start|>" + "user\n" + content + "<|im_end|>\n" }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\n" ~ ("" if mode == "/think" else "<think>\n\n</think>\n") -}}
{%- endif -%}
"""

OLMO_2 = (
    "{{ bos_token }}{%- for turn in messages %}{{ '<|' ~ turn.role ~ '|>\n' ~ turn.content }}"
    "{{ eos_token if turn.role == 'assistant' }}{{ '\n' if turn.role != 'assistant' or not loop.last }}{% endfor %}"
    "{% if messages and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

CHATML = (
    "{% set is_open = add_generation_prompt is defined and add_generation_prompt %}"
    "{% for turn in messages + ([{'role': 'assistant'}] if is_open else []) %}<|im_start|>{{ turn.role }}\n"
    "{% if turn.content is defined %}{{ turn['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)

# Macros that call themselves, loop controls, `with`, filter blocks and tests, as the largest templates use them.
TYPED_TOOLS = r"""
{%- macro type_of(spec, depth=0) -%}
    {%- if spec is not mapping -%}any
    {%- elif spec.type == "array" -%}{{- type_of(spec['items'] or {}, depth + 1) ~ "[]" -}}
    {%- elif spec.enum is defined and spec.enum is sequence -%}{{- spec.enum | map("tojson") | join(" | ") -}}
    {%- elif spec.type is iterable and spec.type is not string -%}{{- spec.type | join(" | ") -}}
    {%- elif spec.type == "object" -%}
        {{- "{\n" -}}
        {%- for name, inner in (spec.properties or {}) | dictsort -%}
            {{- "  " * (depth + 1) ~ name ~ ("" if name in (spec.required or []) else "?") ~ ": " -}}
            {{- type_of(inner, depth + 1) ~ (",\n" if not loop.last else "\n") -}}
        {%- endfor -%}
        {{- "  " * depth ~ "}" -}}
    {%- else -%}{{- spec.type | default("any") -}}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] -%}
    {%- with function = tool.function -%}
        {{- "// " ~ (function.description or "none") | upper | replace("_", " ") ~ "\n" -}}
        {{- "type " ~ function.name | title ~ " = (_: " ~ type_of(function.parameters) ~ ") => any;\n" -}}
    {%- endwith -%}
{%- endfor -%}
{%- set ns = namespace(num_users=0, seen=[]) -%}
{%- for message in messages -%}
    {%- if message.role == "system" -%}{%- continue -%}{%- endif -%}
    {%- if ns.num_users >= 3 -%}{%- break -%}{%- endif -%}
    {%- if message.role == "user" -%}{%- set ns.num_users = ns.num_users + 1 -%}{%- endif -%}
    {%- set ns.seen = ns.seen + [message.role] -%}
    {{- "<" ~ message.role | title ~ loop.cycle(" odd", " even") ~ ">" -}}
    {%- filter upper | trim -%}
        {%- if message.content is string -%}{{- message.content -}}
        {%- else -%}
            {%- for part in message.content if part.type == "text" -%}{{- part.text ~ " " -}}{%- endfor -%}
        {%- endif -%}
    {%- endfilter -%}
    {%- if message.thinking is defined and message.thinking -%}
        {{- "(" ~ message.thinking | indent(2) ~ ")" -}}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
        {%- for key, value in call.function.arguments.items() | sort -%}
            {{- key ~ "=" ~ value | string ~ ";" -}}
        {%- endfor -%}
    {%- endfor -%}
    {{- "\n" -}}
{%- else -%}{{- "nothing" -}}{%- endfor -%}
{{- ns.seen | unique | list | length ~ "|" ~ (ns.seen | first) ~ "|" ~ ns.seen[-2:] | tojson(indent=2) -}}
{{- messages | rejectattr("role", "in", ["user", "tool"]) | map(attribute="role") | join(",") -}}
{%- if 3 is odd and none is none and true is boolean and 1 is number and "x" in "xyz" -%}
    {{- 7 // 2 ~ 2 ** 3 -}}
{%- endif -%}
"""

STYLES = {
    "llama 2": LLAMA_2,
    "llama 3": LLAMA_3,
    "mistral v1": MISTRAL_V1,
    "mistral v3": MISTRAL_V3,
    "mistral v7": MISTRAL_V7,
    "qwen 2.5": QWEN_2_5,
    "qwen 3": QWEN_3,
    "gemma 2": GEMMA_2,
    "gemma 3": GEMMA_3,
    "phi 3": PHI_3,
    "phi 4": PHI_4,
    "deepseek r1": DEEPSEEK_R1,
    "smollm 3": SMOLLM_3,
    "olmo 2": OLMO_2,
    "chatml": CHATML,
    "typed tools": TYPED_TOOLS,
}
