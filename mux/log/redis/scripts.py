"""The Lua scripts of the Redis store: each is one atomic step within one slot of a cluster.

Keys and their slots (what stands in braces decides the slot):

- ``mux:{RUN}:run``: a hash: the fields of the row, each as JSON, and ``n`` (its number), ``op`` (what made
  it), ``fence``, ``worker``, ``epoch``, ``first``, ``head``, ``bytes``. ``mux:{RUN}:log``: a stream; an
  entry is a chunk of records, its id ``<last seq>-0``. ``…:text``: channel → text to be found. ``…:convs``:
  the keys of its conversations. ``…:commands``: a hash, command → sender and payload, until it is answered;
  ``…:answers``: command → answer, for a while.
- ``mux:{runs}:…``: the indices of all runs, and ``meta`` (``format``, ``number`` of the newest run, which
  Redis processes were seen). They are hints: a list looks at the rows, and a run that was lost from them is
  found by nobody, so a run's place is written before the run, and removed after it. ``all``, ``open`` (not
  finished), ``done`` (finished and unstarred), ``s:STATUS``, ``o:H``, ``t:H``: runs by time, of a final
  status, an owner, a thread; ``k:KIND``: what is no run. Members are ``<number, 16 digits>:<run>``.
- ``mux:{queue}:…``: the queue and the leases of workers: ``owners`` (whose turn is next), ``o:OWNER`` (their
  runs), ``owner`` (run → owner, of all that wait or are taken), ``taken`` (run → worker), ``w:WORKER`` (a
  worker's runs), ``workers`` (by the end of their lease, on Redis's clock), ``servers`` (worker → where it
  is), ``took:WORKER`` (its last answer of `take`).
- ``mux:{c:H}:conv`` / ``…:order``: conversations of a thread's channel, by the number of their run.
- ``mux:{k:H}:key``: an idempotency key, until it expires.
- ``mux:{keys}:KIND``: who may call, by name; ``…:ends``: names of those that may be forgotten, by time.

Channels: ``mux:{RUN}:tail`` gets what is appended, ``mux:worker:WORKER`` the commands for its runs,
``mux:front:FRONT`` the answers, ``mux:queue`` a word when a run is offered.

KEYS[1] is a key of the slot; what else a script touches in it is made from the same prefix.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["FIELDS", "FORMAT", "SCRIPTS", "run_key", "sha"]

FORMAT: Final = 3  # since 3 a run has a slot of its own, and a database many servers
FIELDS: Final = (
    "thread", "owner", "status", "created", "updated", "request", "title", "starred", "metadata", "message",
    "agents", "finished", "summary", "kind",
)  # fmt: skip
ANSWERS_S: Final = 120  # an answer is kept for a sender that asks again
MAX_COMMANDS: Final = 256  # that may wait for one run's worker

_NAMES = ", ".join(f"'{name}'" for name in FIELDS)
_COMMON = f"""
local call = redis.call
local P = string.match(KEYS[1], '^mux:{{.*}}:')
local key = P..'run'
local function row() return call('HMGET', key, {_NAMES}) end
"""

# --- a run's slot -------------------------------------------------------------------------------------------

# ARGV: fence, first seq ('' = an empty batch), last seq, bytes, then last seq and data of each chunk.
# A batch that is there already was written by this very call, whose answer was lost.
_APPEND = """
local s = call('HMGET', key, 'fence', 'head', 'epoch', 'first')
if not s[1] then return {'missing'} end
if s[1] ~= ARGV[1] then return {'fenced', s[1]} end
if ARGV[2] == '' then return {'ok', s[3], s[4], s[2]} end
local log = P..'log'
if tonumber(ARGV[2]) ~= s[2] + 1 then
  if s[2] ~= ARGV[3] then return {'seq', s[2]} end
  for i = 5, #ARGV, 2 do
    local got = call('XRANGE', log, ARGV[i]..'-0', ARGV[i]..'-0')
    if not got[1] or got[1][2][2] ~= ARGV[i + 1] then return {'seq', s[2]} end
  end
  return {'ok', s[3], s[4], s[2]}
end
for i = 5, #ARGV, 2 do
  call('XADD', log, ARGV[i]..'-0', 'd', ARGV[i + 1])
  call('PUBLISH', P..'tail', s[3]..' '..ARGV[i]..' '..s[1]..' '..ARGV[i + 1])
end
call('HSET', key, 'head', ARGV[3])
call('HINCRBY', key, 'bytes', ARGV[4])
return {'ok', s[3], s[4], ARGV[3]}
"""

# The log is shorter than what somebody was told: a tail was lost.
_LOST = """
if call('EXISTS', key) == 0 then return {'missing'} end
local epoch = call('HINCRBY', key, 'epoch', 1)
call('HINCRBY', key, 'fence', 1)
call('PUBLISH', P..'tail', epoch..' 0 0 ')
return {'ok', epoch}
"""

# ARGV: after, limit, bytes. Sizes are counted here, so that a page is one answer.
_READ = """
local s = call('HMGET', key, 'epoch', 'first', 'head')
if not s[1] then return {'missing'} end
local start = math.max(tonumber(ARGV[1]), s[2] - 1)
local limit, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local out, from = {}, string.format('(%.0f-0', start)
while true do
  local some = call('XRANGE', P..'log', from, '+', 'COUNT', 32)
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
local s = call('HMGET', key, 'epoch', 'first', 'head')
if not s[1] then return {'missing'} end
return {'ok', s[1], s[2], s[3]}
"""

# ARGV: before. Bytes shrink in proportion: reading what goes, only to count it, would hold Redis up.
_TRIM = """
local s = call('HMGET', key, 'epoch', 'first', 'head', 'bytes')
if not s[1] then return {'missing'} end
local before = math.min(tonumber(ARGV[1]), s[3] + 1)
if before <= tonumber(s[2]) then return {'ok', s[1], s[2], s[3]} end
local first = string.format('%.0f', before)
local entries = call('XLEN', P..'log')
local gone = call('XTRIM', P..'log', 'MINID', first..'-0')
if gone > 0 then
  call('HINCRBY', key, 'bytes', '-'..string.format('%.0f', math.floor(s[4] * gone / entries)))
end
call('HSET', key, 'first', first)
return {'ok', s[1], first, s[3]}
"""

# ARGV: op, number, head, bytes, how many words of chunks, those (last seq and data of each), then names and
# values of the row.
_CREATE = """
if call('HGET', key, 'op') == ARGV[1] then return {'ok', row()} end
if call('EXISTS', key) == 1 then return {'exists'} end
local fields = 6 + tonumber(ARGV[5])
for i = 6, fields - 1, 2 do call('XADD', P..'log', ARGV[i]..'-0', 'd', ARGV[i + 1]) end
call('HSET', key, 'n', ARGV[2], 'op', ARGV[1], 'fence', 0, 'epoch', 1, 'first', 1, 'head', ARGV[3],
     'bytes', ARGV[4], unpack(ARGV, fields))
return {'ok', row()}
"""

# ARGV: '1' if the row's own text changes, then names and values of what changes.
_UPDATE = """
local number = call('HGET', key, 'n')
if not number then return {'missing'} end
local old = row()
call('HSET', key, unpack(ARGV, 2))
if ARGV[1] == '1' then call('HDEL', P..'text', '') end
return {'ok', row(), old, number}
"""

# ARGV: '1' for retention: only if it is still finished and unstarred. A run that is gone when the same call
# comes again was deleted by it.
_DELETE = """
local FINAL = {['"completed"'] = 1, ['"partial"'] = 1, ['"failed"'] = 1, ['"cancelled"'] = 1}
local number = call('HGET', key, 'n')
if not number then return {'missing'} end
local r = row()
if ARGV[1] == '1' and not (FINAL[r[3]] and r[8] == 'false') then return {'kept'} end
local convs = call('SMEMBERS', P..'convs')
call('UNLINK', key, P..'log', P..'text', P..'convs', P..'commands', P..'answers')
call('PUBLISH', P..'tail', '0 0 0 ')
return {'ok', r, number, convs}
"""

# ARGV: worker.
_CLAIM = """
if call('EXISTS', key) == 0 then return {'missing'} end
call('HSET', key, 'worker', ARGV[1])
return {'ok', call('HINCRBY', key, 'fence', 1), call('HGETALL', P..'commands')}
"""

# ARGV: channel, text.
_TEXT = """
if call('EXISTS', key) == 0 then return {'missing'} end
call('HSET', P..'text', ARGV[1], ARGV[2])
return {'ok'}
"""

# ARGV: '1' with its texts.
_GET = """
if call('EXISTS', key) == 0 then return {'missing'} end
return {'ok', row(), ARGV[1] == '1' and call('HGETALL', P..'text') or {}, call('HGET', key, 'n')}
"""

# ARGV: digest of a conversation's thread and channel.
_HAS_CONV = """
local number = call('HGET', key, 'n')
if not number then return {'missing'} end
call('SADD', P..'convs', ARGV[1])
return {'ok', number}
"""

# ARGV: command, front, payload, how many may wait. One that was sent already is not sent again.
_SEND = f"""
local answer = call('HGET', P..'answers', ARGV[1])
if answer then return {{'answered', answer}} end
local worker = call('HGET', key, 'worker')
if call('EXISTS', key) == 0 then return {{'missing'}} end
if call('HEXISTS', P..'commands', ARGV[1]) == 0 then
  if call('HLEN', P..'commands') >= {MAX_COMMANDS} then return {{'full'}} end
  call('HSET', P..'commands', ARGV[1], ARGV[2]..' '..ARGV[3])
end
if worker then
  call('PUBLISH', 'mux:worker:'..worker, string.match(P, '{{(.*)}}')..' '..ARGV[1]..' '..ARGV[3])
end
return {{'ok'}}
"""

# ARGV: command, payload.
_ANSWER = f"""
local sent = call('HGET', P..'commands', ARGV[1])
if not sent then return {{'ok'}} end
call('HDEL', P..'commands', ARGV[1])
call('HSET', P..'answers', ARGV[1], ARGV[2])
call('EXPIRE', P..'answers', {ANSWERS_S})
call('PUBLISH', 'mux:front:'..string.match(sent, '^[^ ]+'), ARGV[1]..' '..ARGV[2])
return {{'ok'}}
"""

_ASKED = """
return {'ok', call('HGETALL', P..'commands')}
"""

# ARGV: command.
_ANSWERED = """
return {'ok', call('HGET', P..'answers', ARGV[1])}
"""

# --- the indices' slot --------------------------------------------------------------------------------------

# ARGV: number ('' = a new one), created, run, how many places to add it to, those, and those to remove it
# from.
_INDEX = """
local number = ARGV[1]
if number == '' then number = call('HINCRBY', P..'meta', 'number', 1) end
local member = string.format('%016.0f', number)..':'..ARGV[3]
local add = tonumber(ARGV[4])
for i = 5, 4 + add do call('ZADD', P..ARGV[i], ARGV[2], member) end
for i = 5 + add, #ARGV do call('ZREM', P..ARGV[i], member) end
return {'ok', number}
"""

# ARGV: highest created or '+inf', the member that stood there or '', how many, then places to look at: the
# newest members of all of them, after that position, and whether there may be more.
_PAGE = """
local most, wanted, found = ARGV[1], tonumber(ARGV[3]), {}
for i = 4, #ARGV do
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
local out, last = {}, nil
for _, one in ipairs(found) do
  if one[2] ~= last and #out < wanted then out[#out + 1] = {string.format('%.0f', one[1]), one[2]} end
  last = one[2]
end
return {'ok', out, #found >= wanted and 1 or 0}
"""

# ARGV: place, offset, how many: its members, oldest first.
_OLDEST = """
return {'ok', call('ZRANGE', P..ARGV[1], ARGV[2], ARGV[2] + ARGV[3] - 1, 'WITHSCORES')}
"""

# ARGV: our format, then for each node its name, which Redis process it is, and '1' if it loses nothing.
# Answers with how many of them may have lost a tail since they were last seen.
_OPENED = """
local meta = P..'meta'
local known = call('HGET', meta, 'format')
if known and tonumber(known) > tonumber(ARGV[1]) then return {'newer', known} end
local unsure = 0
for i = 2, #ARGV, 3 do
  local m = call('HMGET', meta, 'redis:'..ARGV[i], 'sure:'..ARGV[i])
  if m[1] and m[1] ~= ARGV[i + 1] and not (m[2] == '1' and ARGV[i + 2] == '1') then unsure = unsure + 1 end
  call('HSET', meta, 'redis:'..ARGV[i], ARGV[i + 1], 'sure:'..ARGV[i], ARGV[i + 2])
end
call('HSET', meta, 'format', ARGV[1])
return {'ok', unsure}
"""

# --- the queue's slot ---------------------------------------------------------------------------------------

_QUEUE = """
local function put(run, owner, front)
  local mine = P..'o:'..owner
  if call('LLEN', mine) == 0 then call('RPUSH', P..'owners', owner) end
  call(front and 'LPUSH' or 'RPUSH', mine, run)
  call('PUBLISH', 'mux:queue', run)
end
local function free(run, worker)
  if call('HGET', P..'taken', run) ~= worker then return false end
  call('HDEL', P..'taken', run)
  call('SREM', P..'w:'..worker, run)
  return true
end
local function now()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

# ARGV: run, owner.
_OFFER = """
if call('HEXISTS', P..'owner', ARGV[1]) == 1 then return {'ok'} end
call('HSET', P..'owner', ARGV[1], ARGV[2])
put(ARGV[1], ARGV[2], false)
return {'ok'}
"""

# ARGV: worker, how many, op. The same call again gets the same runs.
_TAKE = """
local took = P..'took:'..ARGV[1]
local before = call('LRANGE', took, 0, -1)
if before[1] == ARGV[3] then return {'ok', {unpack(before, 2)}} end
if not call('ZSCORE', P..'workers', ARGV[1]) then return {'lease'} end
local runs = {}
while #runs < tonumber(ARGV[2]) do
  local owner = call('LPOP', P..'owners')
  if not owner then break end
  local run = call('LPOP', P..'o:'..owner)
  if call('LLEN', P..'o:'..owner) > 0 then call('RPUSH', P..'owners', owner) end
  if run then
    runs[#runs + 1] = run
    call('HSET', P..'taken', run, ARGV[1])
    call('SADD', P..'w:'..ARGV[1], run)
  end
end
if #runs > 0 then
  call('DEL', took)
  call('RPUSH', took, ARGV[3], unpack(runs))
  call('EXPIRE', took, 60)
end
return {'ok', runs}
"""

# ARGV: run, worker. The same call again finds it taken by this worker.
_WITHDRAW = """
if call('HGET', P..'taken', ARGV[1]) == ARGV[2] then return {'ok', 1} end
local owner = call('HGET', P..'owner', ARGV[1])
if not owner or call('LREM', P..'o:'..owner, 1, ARGV[1]) == 0 then return {'ok', 0} end
if call('LLEN', P..'o:'..owner) == 0 then call('LREM', P..'owners', 1, owner) end
call('HSET', P..'taken', ARGV[1], ARGV[2])
call('SADD', P..'w:'..ARGV[2], ARGV[1])
return {'ok', 1}
"""

# ARGV: run, worker.
_GIVE_BACK = """
if free(ARGV[1], ARGV[2]) then put(ARGV[1], call('HGET', P..'owner', ARGV[1]), true) end
return {'ok'}
"""

# ARGV: run, worker.
_FINISH = """
local worker = call('HGET', P..'taken', ARGV[1])
if worker and not free(ARGV[1], ARGV[2]) then return {'ok'} end
local owner = call('HGET', P..'owner', ARGV[1])
call('HDEL', P..'owner', ARGV[1])
if owner and not worker then
  call('LREM', P..'o:'..owner, 1, ARGV[1])
  if call('LLEN', P..'o:'..owner) == 0 then call('LREM', P..'owners', 1, owner) end
end
return {'ok'}
"""

# ARGV: run. Owners take turns: before its n-th run, each other has had n, or n - 1 if its turn is later.
_POSITION = """
local owner = call('HGET', P..'owner', ARGV[1])
local before = owner and call('LPOS', P..'o:'..owner, ARGV[1])
if not before then return {'ok', 0} end
local place, earlier = before, 1
for _, other in ipairs(call('LRANGE', P..'owners', 0, -1)) do
  if other == owner then earlier = 0
  else place = place + math.min(call('LLEN', P..'o:'..other), before + earlier) end
end
return {'ok', place + 1}
"""

_WAITING = """
return {'ok', call('HLEN', P..'owner') - call('HLEN', P..'taken')}
"""

# ARGV: then runs: which of them nobody has in the queue.
_UNKNOWN = """
local out = {}
for i = 1, #ARGV do
  if call('HEXISTS', P..'owner', ARGV[i]) == 0 then out[#out + 1] = ARGV[i] end
end
return {'ok', out}
"""

# ARGV: worker, lease in ms, where it is (JSON), '1' to take part from now on. Ends the leases that are over,
# and offers their runs again.
_RENEW = """
local at = now()
local mine = call('ZSCORE', P..'workers', ARGV[1])
local ended = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', P..'workers', '-inf', at)) do
  if worker ~= ARGV[1] then
    for _, run in ipairs(call('SMEMBERS', P..'w:'..worker)) do
      if free(run, worker) then put(run, call('HGET', P..'owner', run), true) end
    end
    call('DEL', P..'w:'..worker)
    call('ZREM', P..'workers', worker)
    call('HDEL', P..'servers', worker)
    ended[#ended + 1] = worker
  end
end
if not mine and ARGV[4] ~= '1' then return {'lost', ended} end
call('ZADD', P..'workers', at + ARGV[2], ARGV[1])
call('HSET', P..'servers', ARGV[1], ARGV[3])
return {'ok', ended}
"""

# ARGV: worker. Its runs are offered again at once.
_LEAVE = """
for _, run in ipairs(call('SMEMBERS', P..'w:'..ARGV[1])) do
  if free(run, ARGV[1]) then put(run, call('HGET', P..'owner', run), true) end
end
call('DEL', P..'w:'..ARGV[1], P..'took:'..ARGV[1])
call('ZREM', P..'workers', ARGV[1])
call('HDEL', P..'servers', ARGV[1])
return {'ok'}
"""

# Where the servers are whose lease has not ended.
_SERVERS = """
local out = {}
for _, worker in ipairs(call('ZRANGEBYSCORE', P..'workers', now(), '+inf')) do
  out[#out + 1] = call('HGET', P..'servers', worker)
end
return {'ok', out}
"""

# --- slots of their own -------------------------------------------------------------------------------------

# ARGV: body hash, run, expires, now, the run that was found gone or ''. The first gives the key its run.
_KEY = """
local key = P..'key'
local k = call('HMGET', key, 'hash', 'run', 'expires', 'made')
if k[1] and tonumber(k[3]) > tonumber(ARGV[4]) and k[2] ~= ARGV[5] then
  return {'known', k[1], k[2], k[4] and 1 or 0}
end
call('DEL', key)
call('HSET', key, 'hash', ARGV[1], 'run', ARGV[2], 'expires', ARGV[3])
call('PEXPIREAT', key, ARGV[3])
return {'ok'}
"""

# ARGV: run. From now on the key's run is one that was made: when it can't be found, it was deleted.
_KEY_MADE = """
local key = P..'key'
if call('HGET', key, 'run') == ARGV[1] then call('HSET', key, 'made', 1) end
return {'ok'}
"""

# ARGV: number of the run, data.
_REMEMBER = """
call('HSET', P..'conv', ARGV[1], ARGV[2])
call('ZADD', P..'order', ARGV[1], ARGV[1])
return {'ok'}
"""

# ARGV: number of the run that is forgotten.
_UNREMEMBER = """
call('HDEL', P..'conv', ARGV[1])
call('ZREM', P..'order', ARGV[1])
return {'ok'}
"""

# ARGV: number of a run ('' = none): the newest conversation before it.
_RECALL = """
local bound = ARGV[1] == '' and '+inf' or '('..ARGV[1]
local newest = call('ZREVRANGEBYSCORE', P..'order', bound, '-inf', 'LIMIT', 0, 1)
if not newest[1] then return {'ok', false} end
return {'ok', call('HGET', P..'conv', newest[1])}
"""

# ARGV: kind, name, data, expires ('' = never), now.
_KEY_PUT = """
local ends = P..'ends'
for _, old in ipairs(call('ZRANGEBYSCORE', ends, '-inf', ARGV[5], 'LIMIT', 0, 100)) do
  local kind, name = string.match(old, '^([^ ]+) (.*)$')
  call('HDEL', P..kind, name)
  call('ZREM', ends, old)
end
call('HSET', P..ARGV[1], ARGV[2], ARGV[3])
if ARGV[4] ~= '' then call('ZADD', ends, ARGV[4], ARGV[1]..' '..ARGV[2]) end
return {'ok'}
"""

# ARGV: kind, name, op. The same call again, after an answer that was lost, gets the same.
_KEY_POP = """
local took = P..'took:'..ARGV[3]
local data = call('GET', took) or call('HGET', P..ARGV[1], ARGV[2])
if not data then return {'ok', false} end
call('HDEL', P..ARGV[1], ARGV[2])
call('ZREM', P..'ends', ARGV[1]..' '..ARGV[2])
call('SET', took, data, 'EX', 60)
return {'ok', data}
"""

SCRIPTS: Final = {
    name: _COMMON + text
    for name, text in {
        "append": _APPEND,
        "lost": _LOST,
        "read": _READ,
        "head": _HEAD,
        "trim": _TRIM,
        "create": _CREATE,
        "update": _UPDATE,
        "delete": _DELETE,
        "claim": _CLAIM,
        "text": _TEXT,
        "get": _GET,
        "has_conv": _HAS_CONV,
        "send": _SEND,
        "answer": _ANSWER,
        "asked": _ASKED,
        "answered": _ANSWERED,
        "index": _INDEX,
        "page": _PAGE,
        "oldest": _OLDEST,
        "opened": _OPENED,
        "offer": _QUEUE + _OFFER,
        "take": _QUEUE + _TAKE,
        "withdraw": _WITHDRAW,
        "give_back": _QUEUE + _GIVE_BACK,
        "finish": _QUEUE + _FINISH,
        "position": _POSITION,
        "waiting": _WAITING,
        "unknown": _UNKNOWN,
        "renew": _QUEUE + _RENEW,
        "leave": _QUEUE + _LEAVE,
        "servers": _QUEUE + _SERVERS,
        "key": _KEY,
        "key_made": _KEY_MADE,
        "key_put": _KEY_PUT,
        "key_pop": _KEY_POP,
        "remember": _REMEMBER,
        "unremember": _UNREMEMBER,
        "recall": _RECALL,
    }.items()
}
_SHAS = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()
}


def sha(name: str) -> str:
    """A script's name in Redis."""
    return _SHAS[name]


def run_key(run: str) -> str:
    """The key of a run's row, in whose slot all that belongs to the run is."""
    return f"mux:{{{run}}}:run"
