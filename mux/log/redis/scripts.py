"""The Lua scripts of the Redis store: each is one atomic step, and each that writes checks the lease.

Keys, all with one hash tag, so that a script may touch any of them, also on a Redis Cluster (where the store
is one slot, and so on one node):

- ``lease``: the server that may write (``token``, ``info``), with a TTL.
- ``meta``: ``format``, ``generation`` (how often the lease changed hands), ``redis`` and ``sure`` (which
  Redis process it was, and whether that loses nothing), ``number`` (of the newest run).
- ``bytes``: of all logs.
- ``run:RUN``: the fields of the row, each as JSON, and ``n`` (its number), ``op`` (what made it), ``fence``,
  ``epoch``, ``first``, ``head``, ``bytes``, ``holder``.
- ``log:RUN``: a stream; an entry is a chunk of records, its id ``<last seq>-0``.
- ``text:RUN``: channel → text to be found. ``convs:RUN``: its conversations' keys.
- ``conv:H`` / ``convz:H``: number of the run → conversation, of a thread's channel; and their order.
- ``key:H``: an idempotency key, until it expires. ``gone:OP``: a run was deleted by this call just now.
- ``runs``, ``runs:s:H``, ``runs:o:H``, ``runs:t:H``: runs by time; of a status, an owner, a thread.
  ``runs:done``: finished and unstarred. Members are ``<number, 16 digits>:<run>``.

In every script KEYS[1] is the lease. A writing script's ARGV[1] is the server's token, ARGV[2] the run.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["FIELDS", "PREFIX", "SCRIPTS", "sha"]

PREFIX: Final = "mux:{mux}:"
FORMAT: Final = 2  # since 2 chunks may hold tokens without their envelopes
FIELDS: Final = (
    "thread", "owner", "status", "created", "updated", "request", "title", "starred", "metadata", "message",
    "agents", "finished", "summary", "kind",
)  # fmt: skip

_NAMES = ", ".join(f"'{name}'" for name in FIELDS)
_COMMON = f"""
local P = '{PREFIX}'
local call = redis.call
local function row(run) return call('HMGET', P..'run:'..run, {_NAMES}) end
"""

# A writing script goes on only while the server has the lease.
_GUARD = """
if call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'lease'} end
local run = ARGV[2]
local key = P..'run:'..run
"""

_INDEX = """
local FINAL = {['"completed"'] = 1, ['"partial"'] = 1, ['"failed"'] = 1, ['"cancelled"'] = 1}
local function places(r)
  local found = {'runs', 'runs:s:'..redis.sha1hex(r[3]), 'runs:o:'..redis.sha1hex(r[2]),
                 'runs:t:'..redis.sha1hex(r[1])}
  if FINAL[r[3]] and r[8] == 'false' then found[5] = 'runs:done' end
  return found
end
local function member(number) return string.format('%016.0f', number)..':'..run end
local function index(r, number)
  for _, place in ipairs(places(r)) do call('ZADD', P..place, r[4], member(number)) end
end
local function unindex(r, number)
  for _, place in ipairs(places(r)) do call('ZREM', P..place, member(number)) end
end
"""

# ARGV: token, run, fence, first seq ('' = an empty batch), last seq, bytes, then for each chunk its last seq
# and its data. A batch that is there already was written by this very call, whose answer was lost.
_APPEND = """
local s = call('HMGET', key, 'fence', 'head', 'epoch', 'first')
if not s[1] then return {'missing'} end
if s[1] ~= ARGV[3] then return {'fenced', s[1]} end
if ARGV[4] == '' then return {'ok', s[3], s[4], s[2]} end
local log = P..'log:'..run
if tonumber(ARGV[4]) ~= s[2] + 1 then
  if s[2] ~= ARGV[5] then return {'seq', s[2]} end
  for i = 7, #ARGV, 2 do
    local got = call('XRANGE', log, ARGV[i]..'-0', ARGV[i]..'-0')
    if not got[1] or got[1][2][2] ~= ARGV[i + 1] then return {'seq', s[2]} end
  end
  return {'ok', s[3], s[4], s[2]}
end
for i = 7, #ARGV, 2 do call('XADD', log, ARGV[i]..'-0', 'd', ARGV[i + 1]) end
call('HSET', key, 'head', ARGV[5])
call('HINCRBY', key, 'bytes', ARGV[6])
call('INCRBY', P..'bytes', ARGV[6])
return {'ok', s[3], s[4], ARGV[5]}
"""

# ARGV: token, run. The log is shorter than what this server was told: a tail was lost.
_LOST = """
if call('EXISTS', key) == 0 then return {'missing'} end
return {'ok', call('HINCRBY', key, 'epoch', 1)}
"""

# ARGV: run, after, limit, bytes. Sizes are counted here, so that a page is one answer.
_READ = """
local s = call('HMGET', P..'run:'..ARGV[1], 'epoch', 'first', 'head')
if not s[1] then return {'missing'} end
local start = math.max(tonumber(ARGV[2]), s[2] - 1)
local limit, bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local out, from = {}, string.format('(%.0f-0', start)
while true do
  local some = call('XRANGE', P..'log:'..ARGV[1], from, '+', 'COUNT', 32)
  for _, entry in ipairs(some) do
    out[#out + 1] = entry
    bytes = bytes - #entry[2][2]
    local last = tonumber(string.match(entry[1], '^%d+'))
    if bytes <= 0 or last - start >= limit then return {'ok', s[1], s[2], s[3], out} end
  end
  if #some < 32 then return {'ok', s[1], s[2], s[3], out} end
  from = '('..some[#some][1]
end
"""

_HEAD = """
local s = call('HMGET', P..'run:'..ARGV[1], 'epoch', 'first', 'head')
if not s[1] then return {'missing'} end
return {'ok', s[1], s[2], s[3]}
"""

# ARGV: token, run, before. Bytes shrink in proportion: reading what goes, only to count it, would hold
# Redis up.
_TRIM = """
local s = call('HMGET', key, 'epoch', 'first', 'head', 'bytes')
if not s[1] then return {'missing'} end
local before = math.min(tonumber(ARGV[3]), s[3] + 1)
if before <= tonumber(s[2]) then return {'ok', s[1], s[2], s[3]} end
local first = string.format('%.0f', before)
local log = P..'log:'..run
local kept = call('XLEN', log)
local gone = call('XTRIM', log, 'MINID', first..'-0')
if gone > 0 then
  local less = string.format('%.0f', math.floor(s[4] * gone / kept))
  call('HINCRBY', key, 'bytes', '-'..less)
  call('DECRBY', P..'bytes', less)
end
call('HSET', key, 'first', first)
return {'ok', s[1], first, s[3]}
"""

# ARGV: token, run, op, now, idempotency key or '', body hash, expires, then names and values of the row.
_CREATE = """
if call('HGET', key, 'op') == ARGV[3] then return {'ok', row(run), run} end
if ARGV[5] ~= '' then
  local k = call('HMGET', P..'key:'..ARGV[5], 'hash', 'run', 'n', 'expires')
  if k[1] and tonumber(k[4]) > tonumber(ARGV[4]) and call('HGET', P..'run:'..k[2], 'n') == k[3] then
    if k[1] ~= ARGV[6] then return {'key'} end
    return {'ok', row(k[2]), k[2]}
  end
end
if call('EXISTS', key) == 1 then return {'exists'} end
local number = call('HINCRBY', P..'meta', 'number', 1)
call('HSET', key, 'n', number, 'op', ARGV[3], 'fence', 0, 'epoch', 1, 'first', 1, 'head', 0, 'bytes', 0,
     unpack(ARGV, 8))
index(row(run), number)
if ARGV[5] ~= '' and tonumber(ARGV[7]) > tonumber(ARGV[4]) then
  local place = P..'key:'..ARGV[5]
  call('HSET', place, 'hash', ARGV[6], 'run', run, 'n', number, 'expires', ARGV[7])
  call('PEXPIREAT', place, ARGV[7])
end
return {'ok', row(run), run}
"""

# ARGV: token, run, '1' if the row's own text changes, then names and values of what changes.
_UPDATE = """
local number = call('HGET', key, 'n')
if not number then return {'missing'} end
unindex(row(run), number)
call('HSET', key, unpack(ARGV, 4))
local now = row(run)
index(now, number)
if ARGV[3] == '1' then call('HDEL', P..'text:'..run, '') end
return {'ok', now}
"""

# ARGV: token, run, '1' for retention: only if it is still finished and unstarred; op, which is remembered for
# a while: the run is gone when the same call comes again.
_DELETE = """
if call('EXISTS', P..'gone:'..ARGV[4]) == 1 then return {'ok'} end
local number = call('HGET', key, 'n')
if not number then return {'missing'} end
local r = row(run)
if ARGV[3] == '1' and not (FINAL[r[3]] and r[8] == 'false') then return {'kept'} end
unindex(r, number)
for _, h in ipairs(call('SMEMBERS', P..'convs:'..run)) do
  call('HDEL', P..'conv:'..h, number)
  call('ZREM', P..'convz:'..h, number)
end
call('DECRBY', P..'bytes', call('HGET', key, 'bytes'))
call('SET', P..'gone:'..ARGV[4], '1', 'EX', 60)
call('UNLINK', key, P..'log:'..run, P..'text:'..run, P..'convs:'..run)
return {'ok'}
"""

_CLAIM = """
if call('EXISTS', key) == 0 then return {'missing'} end
call('HSET', key, 'holder', ARGV[3])
return {'ok', call('HINCRBY', key, 'fence', 1)}
"""

# ARGV: token, run, channel, text.
_TEXT = """
if call('EXISTS', key) == 0 then return {'missing'} end
call('HSET', P..'text:'..run, ARGV[3], ARGV[4])
return {'ok'}
"""

# ARGV: token, run, hash of thread and channel, data.
_REMEMBER = """
local number = call('HGET', key, 'n')
if not number then return {'missing'} end
call('HSET', P..'conv:'..ARGV[3], number, ARGV[4])
call('ZADD', P..'convz:'..ARGV[3], number, number)
call('SADD', P..'convs:'..run, ARGV[3])
return {'ok'}
"""

# ARGV: hash of thread and channel, run or ''.
_RECALL = """
local bound = '+inf'
if ARGV[2] ~= '' then
  bound = call('HGET', P..'run:'..ARGV[2], 'n')
  if not bound then return {'missing'} end
  bound = '('..bound
end
local newest = call('ZREVRANGEBYSCORE', P..'convz:'..ARGV[1], bound, '-inf', 'LIMIT', 0, 1)
if not newest[1] then return {'ok', false} end
return {'ok', call('HGET', P..'conv:'..ARGV[1], newest[1])}
"""

_GET = """
if call('EXISTS', P..'run:'..ARGV[1]) == 0 then return {'missing'} end
return {'ok', row(ARGV[1])}
"""

# ARGV: highest created or '+inf', the member that stood there or '', how many, '1' with texts, then the
# indexes to look at: the newest runs of all of them, after that position, and whether there may be more.
_PAGE = """
local most, wanted, found = ARGV[1], tonumber(ARGV[3]), {}
for i = 5, #ARGV do
  local offset, taken = 0, 0
  while taken < wanted do
    local some = call('ZREVRANGEBYSCORE', P..ARGV[i], most, '-inf', 'WITHSCORES', 'LIMIT', offset, wanted)
    for j = 1, #some, 2 do
      local score = tonumber(some[j + 1])
      if taken < wanted and (ARGV[2] == '' or score < tonumber(most) or some[j] < ARGV[2]) then
        found[#found + 1] = {score, some[j]}
        taken = taken + 1
      end
    end
    if #some < 2 * wanted then break end
    offset = offset + wanted
  end
end
table.sort(found, function(a, b)
  if a[1] ~= b[1] then return a[1] > b[1] end
  return a[2] > b[2]
end)
local out, bytes, count = {}, 0, math.min(wanted, #found)
for i = 1, count do
  local run = string.sub(found[i][2], 18)
  local texts = ARGV[4] == '1' and call('HGETALL', P..'text:'..run) or {}
  out[i] = {found[i][2], row(run), texts}
  for _, text in ipairs(texts) do bytes = bytes + #text end
  if bytes > 2097152 and i < count then return {'ok', out, 1} end
end
return {'ok', out, count == wanted and 1 or 0}
"""

# ARGV: offset, how many: runs that retention may take, oldest first.
_DONE = """
local out = {}
for i, member in ipairs(call('ZRANGE', P..'runs:done', ARGV[1], ARGV[1] + ARGV[2] - 1)) do
  local run = string.sub(member, 18)
  out[i] = {run, unpack(call('HMGET', P..'run:'..run, 'finished', 'updated', 'bytes'))}
end
return {'ok', out, call('GET', P..'bytes') or '0'}
"""

# ARGV: token, info, TTL in ms, the token of a server that is known to be dead or ''.
_TAKE = """
local held = call('HMGET', KEYS[1], 'token', 'info')
if held[1] and held[1] ~= ARGV[1] and held[1] ~= ARGV[4] then
  return {'held', held[1], held[2], call('PTTL', KEYS[1])}
end
if held[1] ~= ARGV[1] then call('HINCRBY', P..'meta', 'generation', 1) end
call('HSET', KEYS[1], 'token', ARGV[1], 'info', ARGV[2])
call('PEXPIRE', KEYS[1], ARGV[3])
return {'ok', call('HGET', P..'meta', 'generation')}
"""

# ARGV: token, info, TTL in ms, generation. A lease that ran out is taken again if nobody had it since.
_RENEW = """
local held = call('HGET', KEYS[1], 'token')
if held and held ~= ARGV[1] then return {'lost'} end
if call('HGET', P..'meta', 'generation') ~= ARGV[4] then return {'empty'} end
call('HSET', KEYS[1], 'token', ARGV[1], 'info', ARGV[2])
call('PEXPIRE', KEYS[1], ARGV[3])
return {'ok'}
"""

_RELEASE = """
if call('HGET', KEYS[1], 'token') == ARGV[1] then call('DEL', KEYS[1]) end
return {'ok'}
"""

# ARGV: token, our format, which Redis process this is, '1' if it loses nothing; then the open statuses'
# indexes. After another process that may have lost a tail, every unfinished run gets a new epoch.
_OPENED = """
if call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'lease'} end
local m = call('HMGET', P..'meta', 'format', 'redis', 'sure')
if m[1] and tonumber(m[1]) > tonumber(ARGV[2]) then return {'newer', m[1]} end
local renewed = 0
if m[2] and m[2] ~= ARGV[3] and not (m[3] == '1' and ARGV[4] == '1') then
  for i = 5, #ARGV do
    for _, member in ipairs(call('ZRANGE', P..ARGV[i], 0, -1)) do
      call('HINCRBY', P..'run:'..string.sub(member, 18), 'epoch', 1)
      renewed = renewed + 1
    end
  end
end
call('HSET', P..'meta', 'format', ARGV[2], 'redis', ARGV[3], 'sure', ARGV[4])
return {'ok', renewed}
"""

SCRIPTS: Final = {
    "append": _COMMON + _GUARD + _APPEND,
    "lost": _COMMON + _GUARD + _LOST,
    "trim": _COMMON + _GUARD + _TRIM,
    "create": _COMMON + _GUARD + _INDEX + _CREATE,
    "update": _COMMON + _GUARD + _INDEX + _UPDATE,
    "delete": _COMMON + _GUARD + _INDEX + _DELETE,
    "claim": _COMMON + _GUARD + _CLAIM,
    "text": _COMMON + _GUARD + _TEXT,
    "remember": _COMMON + _GUARD + _REMEMBER,
    "recall": _COMMON + _RECALL,
    "read": _COMMON + _READ,
    "head": _COMMON + _HEAD,
    "get": _COMMON + _GET,
    "page": _COMMON + _PAGE,
    "done": _COMMON + _DONE,
    "take": _COMMON + _TAKE,
    "renew": _COMMON + _RENEW,
    "release": _COMMON + _RELEASE,
    "opened": _COMMON + _OPENED,
}
_SHAS = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()
}


def sha(name: str) -> str:
    """A script's name in Redis."""
    return _SHAS[name]
