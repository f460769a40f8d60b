"""The limits that Redis decides, as Lua scripts; each runs as one step, on the server's own time.

One run settles what its process has to tell, then serves that process's line from its head. What
is there is granted, unless lines that wait longer need it. A permit that comes later than its
waiter can wait is refused. The first waiter that has to wait ends the run:

- for no more than 50 ms, and with no line before: its permit is taken in advance, at a known
  instant; nobody who asks later goes before it;
- else its line queues. It takes nothing, and keeps its turn as long as it comes back in time: at
  the latest a second later, for what others have given back may bring its turn forward.

Arguments: microseconds per permit; capacity; name of the line; debt, in permits; permits granted
while Redis was away; microseconds to pause for, or 0; number of refunds, and cost and instant of
each; cost and patience (microseconds, or -1) of each waiter.

Reply: the server's instant; the instant of a permit taken in advance, or 0; the instant at which
the line has its turn if it queues, or 0; the use of the capacity in millionths; microseconds that
are left of a pause; then for each waiter that was served 0, or the microseconds until its permit
for one that was refused. Instants are microseconds since 2025, for which a double has room to
spare.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

_HEAD = """
local state, log = KEYS[1], KEYS[2]
local interval, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = (clock[1] - 1735689600) * 1000000 + clock[2]

-- Microseconds: how far ahead a permit is taken; how often a line looks; how late it may come.
local ahead, look, grace = 50000, 1000000, 250000

local function text(number) return string.format('%.17g', number) end

local function load(...)
  local values = redis.call('HMGET', state, ...)
  for i, value in ipairs(values) do values[i] = tonumber(value or 0) end
  return unpack(values)
end

-- Lines that wait, in order: name, cost of the head, instant until which the turn is kept.
local lines, kept = {}, now
for _, line in ipairs(cjson.decode(redis.call('HGET', state, 'lines') or '[]')) do
  if line[3] > now then lines[#lines + 1] = line end
end

local function keep(key, instant)
  redis.call('PEXPIRE', key, math.max(1, math.ceil((instant - now) / 1000)))
end
"""

# Generic cell rate algorithm (ITU-T I.371). `full`: when the bucket will be full again; `last`:
# the latest instant given out, before which no later permit goes; `held`: end of the latest pause.
_BUCKET = """
local depth = interval * capacity
local full, last, held = load('full', 'last', 'held')

local function earliest(cost)
  return math.max(now, last, math.ceil(full + cost * interval - depth - 0.01))
end

local function spend(cost, instant)
  full = math.max(full, instant) + cost * interval
  last = math.max(last, instant)
end

local function owe(cost)
  full = math.max(full, math.min(math.max(full, now) + cost * interval, now + depth))
end

local function refund(cost, instant)
  -- What a pause has emptied stays so, and those after a place that nobody took stay behind it.
  if instant < held or (instant > now and instant < last) then return end
  if instant >= last then last = math.min(instant, last) - cost * interval end
  full = math.min(full, math.max(full - cost * interval, last + interval))
end

local function hold(instant)
  held = math.max(held, instant)
  full = math.max(full, instant + depth)
end

local function used() return math.max(0, full - now) / depth end

local function save()
  redis.call('HSET', state, 'full', text(full), 'last', text(last), 'held', text(held))
  keep(state, math.max(full, last, held, kept))
end
"""

# A log of "instant:cost" in the order of the instants. `taken`: sum of the log; `held`: end of the
# latest pause; `paced`: the last permit of the even spacing that follows a pause for one window.
_WINDOW = """
local span = interval * capacity
local taken, held, paced = load('taken', 'held', 'paced')

local function entry(index)
  local line = redis.call('LINDEX', log, index)
  if not line then return nil end
  local instant, cost = string.match(line, '^(.*):(.*)$')
  return tonumber(instant), tonumber(cost)
end

local function write(index, instant, cost)
  redis.call('LSET', log, index, text(instant) .. ':' .. text(cost))
end

local oldest, oldest_cost = entry(0)
while oldest and oldest + span <= now do
  redis.call('LPOP', log)
  taken = taken - oldest_cost
  oldest, oldest_cost = entry(0)
end
if not oldest then taken = 0 end

local function earliest(cost)
  -- Whole windows first, when the question is about more than the limit.
  local windows = math.max(0, math.ceil(cost / capacity - 1e-9) - 1)
  cost = cost - windows * capacity
  local instant = math.max(now, held, entry(-1) or 0)
  local excess, index = taken + cost - capacity, 0
  while excess > 1e-6 do
    local left, freed = entry(index)
    if not left then break end
    instant = math.max(instant, left + span)
    excess, index = excess - freed, index + 1
  end
  if instant < held + span then
    instant = math.max(instant, math.min(paced + cost * interval, held + span))
  end
  return math.ceil(instant + windows * span)
end

local function spend(cost, instant)
  local latest, latest_cost = entry(-1)
  instant = math.max(instant, latest or 0)
  if latest == instant then
    write(-1, instant, latest_cost + cost)
  else
    redis.call('RPUSH', log, text(instant) .. ':' .. text(cost))
  end
  taken = taken + cost
  if instant < held + span then paced = math.max(paced + cost * interval, instant) end
end

local function owe(cost) spend(cost, now) end

local function refund(cost, instant)
  for index = -1, -1000, -1 do
    local granted, granted_cost = entry(index)
    if not granted or cost <= 0 then break end
    if granted <= instant then
      local back = math.min(cost, granted_cost)
      write(index, granted, granted_cost - back)
      cost, taken = cost - back, taken - back
      if granted >= held then paced = paced - back * interval end
    end
  end
  local _, latest_cost = entry(-1)
  while latest_cost and latest_cost <= 0 do
    redis.call('RPOP', log)
    _, latest_cost = entry(-1)
  end
end

local function hold(instant)
  if instant > held then held, paced = instant, instant - interval end
end

local function used() return taken / capacity end

local function save()
  redis.call('HSET', state, 'taken', text(taken), 'held', text(held), 'paced', text(paced))
  local last = entry(-1)
  keep(state, math.max(math.max(held, last or now) + span, kept))
  if last then keep(log, last + span) end
end
"""

_SERVE = """
local me = ARGV[3]
local debt, owed, pause = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  refund(tonumber(ARGV[at]), tonumber(ARGV[at + 1]))
  at = at + 2
end
if debt > 0 then spend(debt, now) end
if owed > 0 then owe(owed) end
if pause > 0 then hold(now + pause) end

local place, before = nil, 0
for i, line in ipairs(lines) do
  if line[1] == me then
    place = i
    table.remove(lines, i)
    break
  end
  before = before + line[2]
end

local reply, wanted, served = {now, 0, 0, 0, 0}, nil, false
while ARGV[at] do
  local cost, patience = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local instant = earliest(before + cost)
  if instant <= now then
    spend(cost, now)
    served = true
    reply[#reply + 1] = 0
  elseif patience >= 0 and instant - now > patience then
    reply[#reply + 1] = instant - now
  else
    if before == 0 and instant - now <= ahead then
      spend(cost, instant)
      reply[2] = instant
    else
      wanted = {me, cost, now + math.min(instant - now, look) + grace}
      reply[3] = instant
    end
    break
  end
  at = at + 2
end
-- Whoever has been served something goes to the end, so that lines take turns.
if wanted then table.insert(lines, (not served and place) or #lines + 1, wanted) end
for _, line in ipairs(lines) do kept = math.max(kept, line[3]) end
reply[4] = math.ceil(used() * 1000000)
reply[5] = math.max(0, held - now)
save()
if #lines > 0 then
  redis.call('HSET', state, 'lines', cjson.encode(lines))
else
  redis.call('HDEL', state, 'lines')
end
return reply
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the name under which Redis remembers it.

    Attributes:
        text: Lua 5.1, for Redis 6.2 or newer, or Valkey.
        sha: SHA-1 of the text, in hexadecimal.
    """

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


TOKEN_BUCKET = Script(_HEAD + _BUCKET + _SERVE)
SLIDING_WINDOW = Script(_HEAD + _WINDOW + _SERVE)
PROBE = Script("redis.call('SET', KEYS[1], 1, 'PX', 1)\nreturn {1}")
