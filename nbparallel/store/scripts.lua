-- The state changes of the store, one atomic script each. Every script is idempotent: a client repeats a call
-- whose reply was lost. KEYS[1] is a job's prefix (KEYS[2] where a script concerns no single job), KEYS[2] the
-- namespace's prefix. Keys, their types and who deletes them: keys.py.
--
-- A chunk is one string in the hash `chunks`:  lo hi at attempt crashes losses blob token
--   [lo, hi) its items · at: the first one not reported · token: of the lease, "-" when pending.
-- `held` maps token -> "chunk ticket"; `tickets` maps ticket -> -(ms) when waiting, +(ms) when taking its turn.

-- @prelude
local J, P = KEYS[1], KEYS[2]

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function read_chunk(job, id)
  local text = redis.call('HGET', job .. ':chunks', id)
  if not text then return nil end
  local lo, hi, at, attempt, crashes, losses, blob, token =
    string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+)$')
  return {
    id = id, lo = tonumber(lo), hi = tonumber(hi), at = tonumber(at), attempt = tonumber(attempt),
    crashes = tonumber(crashes), losses = tonumber(losses), blob = blob, token = token,
  }
end

local function write_chunk(job, c)
  redis.call('HSET', job .. ':chunks', c.id, string.format('%d %d %d %d %d %d %s %s',
    c.lo, c.hi, c.at, c.attempt, c.crashes, c.losses, c.blob, c.token))
end

local function split_id(job)
  return 's' .. redis.call('HINCRBY', job .. ':meta', 'splits', 1)
end

local function stop_of(job)
  return tonumber(redis.call('HGET', job .. ':meta', 'stop') or -1)
end

-- Puts [lo, hi) of chunk c, none of it reported, back as a pending chunk, but not items at or above the stop.
local function requeue(job, c, lo, hi, crashes, losses)
  local stop = stop_of(job)
  if stop >= 0 and stop < hi then hi = stop end
  if lo >= hi then return end
  local id = split_id(job)
  write_chunk(job, {
    id = id, lo = lo, hi = hi, at = lo, attempt = c.attempt,
    crashes = crashes, losses = losses, blob = c.blob, token = '-',
  })
  redis.call('ZADD', job .. ':pending', lo, id)
end

local function end_lease(job, token)
  redis.call('HDEL', job .. ':held', token)
  redis.call('ZREM', P .. 'leases', job .. ' ' .. token)
end

local function held_chunk(job, token)
  local held = redis.call('HGET', job .. ':held', token)
  if not held then return nil end
  local id, ticket = string.match(held, '^(%S+) (%S+)$')
  local c = read_chunk(job, id)
  if not c or c.token ~= token then return nil end
  c.ticket = ticket
  return c
end

-- What is unreported of chunk c, held under `token`, becomes pending again.
local function give_back(job, c, token, crashes, losses)
  end_lease(job, token)
  redis.call('HDEL', job .. ':chunks', c.id)
  requeue(job, c, c.at, c.hi, crashes, losses)
end

-- Leases [lo, hi) of chunk c to `token`, whose holder will report errors for these items.
local function lease_to(job, c, lo, hi, token, ticket, lease_ms)
  local id = split_id(job)
  write_chunk(job, {
    id = id, lo = lo, hi = hi, at = lo, attempt = c.attempt,
    crashes = c.crashes, losses = c.losses, blob = c.blob, token = token,
  })
  redis.call('HSET', job .. ':held', token, id .. ' ' .. ticket)
  redis.call('ZADD', P .. 'leases', now_ms() + lease_ms, job .. ' ' .. token)
end

local KINDS = {':pending', ':chunks', ':blobs', ':held', ':tickets', ':out'}

-- A job that is in use does not come to the end of its time to live.
local function keep(job)
  local ttl = redis.call('HGET', job .. ':meta', 'ttl')
  if ttl then
    redis.call('PEXPIRE', job .. ':meta', ttl)
    redis.call('PEXPIRE', job .. ':f', ttl)
  end
  if redis.call('HDEL', job .. ':meta', 'swept') == 1 then -- its client is back
    for _, kind in ipairs(KINDS) do redis.call('PERSIST', job .. kind) end
  end
end

-- What decides who may run a job's chunks.
local function read_meta(job)
  local meta = redis.call('HMGET', job .. ':meta', 'state', 'sid', 'detached', 'max', 'priority', 'queue', 'stop')
  if not meta[1] then return nil end
  return {
    state = meta[1], sid = meta[2], detached = meta[3] == '1', max = tonumber(meta[4]), priority = meta[5] or 0,
    queue = meta[6] or '', stop = tonumber(meta[7] or -1),
  }
end

-- Whether anybody wants the results.
local function has_client(meta)
  return meta.detached or redis.call('EXISTS', P .. 's:' .. meta.sid) == 1
end

-- Whose children may be handed the job's tickets: the session's, on the job's queue.
local function group_of(meta)
  return meta.queue == '' and meta.sid or meta.sid .. ':' .. meta.queue
end

-- A job of the same queue that has work and goes first.
local function more_urgent(meta)
  local urgent = redis.call('ZREVRANGEBYSCORE', P .. 'ranks', '+inf', '(' .. meta.priority, 'LIMIT', 0, 50)
  for _, job in ipairs(urgent) do
    local other = read_meta(job)
    if not other then
      redis.call('ZREM', P .. 'ranks', job)
    elseif other.state == 'open' and other.queue == meta.queue and redis.call('ZCARD', job .. ':pending') > 0
      and has_client(other) and (other.max == 0 or redis.call('HLEN', job .. ':held') < other.max) then
      return job
    end
  end
end

-- Leases the job's next chunk to `token`, whose turn the ticket is; or nil, and why there is none for it.
local function lease_next(job, meta, token, ticket, lease_ms)
  if meta.max > 0 and redis.call('HLEN', job .. ':held') >= meta.max then return nil, 'max_running' end
  local c
  repeat
    local popped = redis.call('ZPOPMIN', job .. ':pending')
    if not popped[1] then return nil, 'nothing pending' end
    c = read_chunk(job, popped[1])
  until c
  if meta.stop >= 0 and meta.stop < c.hi then c.hi = meta.stop end -- not below c.at: such chunks the stop deleted
  c.token = token
  write_chunk(job, c)
  local at = now_ms()
  redis.call('HSET', job .. ':held', token, c.id .. ' ' .. ticket)
  redis.call('ZADD', P .. 'leases', at + lease_ms, job .. ' ' .. token)
  redis.call('ZADD', job .. ':tickets', at, ticket)
  return c
end

-- What a child is told of a chunk that it was leased: without the payload when it `has` it, with the job's meta and
-- function when it is `fresh` to it.
local function describe(job, meta, c, has, fresh)
  local payload, m, f = '', '', ''
  if c.blob ~= has then payload = redis.call('HGET', job .. ':blobs', c.blob) or '' end
  if fresh then m, f = redis.call('HGET', job .. ':meta', 'm'), redis.call('GET', job .. ':f') or '' end
  return c.id, c.at, c.hi, c.attempt, c.crashes, c.blob, payload, meta.stop, meta.sid, m, f
end

-- A message is sent for the ticket. A child may be just about to linger: it would wait for the ticket in vain, and the
-- message for the child; so it looks here first.
local function wait_for_message(job, group, ticket)
  redis.call('RPUSH', P .. 'waits:' .. group, job .. ' ' .. ticket)
  redis.call('LTRIM', P .. 'waits:' .. group, -1000, -1)
  redis.call('PEXPIRE', P .. 'waits:' .. group, 60000)
end

local LARGE = 65536

-- Hands a ticket to a child that lingers, and with it what its first claim would answer: so the child need not ask.
-- Where that is not one small chunk, it does.
local function ring(child, job, meta, ticket)
  local bell = P .. 'bell:' .. child
  local token, lease, knows = string.match(redis.call('GETDEL', P .. 'await:' .. child) or '', '^(%S+) (%S+) (%S+)')
  local c
  if token and has_client(meta) and not more_urgent(meta) then
    c = lease_next(job, meta, token, ticket, tonumber(lease))
  end
  if c then redis.call('HSET', job .. ':meta', 'taken', now_ms()) end
  if c and redis.call('HSTRLEN', job .. ':blobs', c.blob) + redis.call('STRLEN', job .. ':f') <= LARGE then
    redis.call('RPUSH', bell, job .. ' ' .. ticket, describe(job, meta, c, '', job ~= knows))
  else
    redis.call('RPUSH', bell, job .. ' ' .. ticket)
  end
  redis.call('PEXPIRE', bell, 60000)
end

-- Mints of the offered tickets as many as the job can use. A child that lingers for its session is handed one
-- directly; returned are those that need a message, in a repeated call too.
local function mint(job, cap, offered, first)
  local work = redis.call('ZCARD', job .. ':pending') + redis.call('HLEN', job .. ':held')
  local need = math.min(cap, work) - redis.call('ZCARD', job .. ':tickets')
  local meta, at, messages = read_meta(job), now_ms(), {}
  local group = group_of(meta)
  for i = first, first + offered - 1 do
    local ticket = ARGV[i]
    local score = tonumber(redis.call('ZSCORE', job .. ':tickets', ticket))
    if score and score < 0 then
      messages[#messages + 1] = ticket
    elseif not score and need > 0 then
      need = need - 1
      redis.call('ZADD', job .. ':tickets', -at, ticket)
      local idle
      repeat idle = redis.call('ZPOPMIN', P .. 'idle:' .. group) until not idle[1] or tonumber(idle[2]) > at
      if idle[1] then
        ring(idle[1], job, meta, ticket)
      else
        messages[#messages + 1] = ticket
        wait_for_message(job, group, ticket)
      end
    end
  end
  return messages
end

-- A ticket of the group that waits for a message to arrive, or false: then the child is rung for, for so long. What it
-- is handed with a chunk is leased to `token`; it `knows` the meta and function of one job.
local function linger(child, group, ms, token, lease_ms, knows)
  if redis.call('EXISTS', P .. 'bell:' .. child) == 1 then return false end -- a repeated call
  while true do
    local waits = redis.call('LPOP', P .. 'waits:' .. group)
    if not waits then break end
    local job, ticket = string.match(waits, '^(%S+) (%S+)$')
    if tonumber(redis.call('ZSCORE', job .. ':tickets', ticket) or 1) < 0 then return waits end
  end
  redis.call('ZADD', P .. 'idle:' .. group, now_ms() + tonumber(ms), child)
  redis.call('PEXPIRE', P .. 'idle:' .. group, 60000)
  redis.call('SET', P .. 'await:' .. child, table.concat({token, lease_ms, knows, group}, ' '), 'PX', 60000)
  return false
end

-- Nobody rings for the child any more; whether anybody would have.
local function unlinger(child)
  local group = string.match(redis.call('GETDEL', P .. 'await:' .. child) or '', '^%S+ %S+ %S+ (%S+)$')
  if group then redis.call('ZREM', P .. 'idle:' .. group, child) end
  return group ~= nil
end

-- @script submit
-- ARGV: cap, number of tickets offered, whether the session is to be woken (0/1), number of what announces a new job
-- (0 or 10), the tickets, then session, meta (sealed), function blob, max_running (0: no limit), detached (0/1), ttl ms,
-- label, queue, priority, bytes of results that are kept at most (0: no limit), then per chunk: serial, id, lo, hi,
-- attempt, blob, payload
-- Returns {"ok" | "gone" | "stopped", pending, held, tickets to publish...}.
local first = 5 + tonumber(ARGV[2])
if ARGV[4] ~= '0' then
  if redis.call('EXISTS', J .. ':meta') == 0 then
    local sid, m, f, max, detached, ttl, label, queue, priority, budget = unpack(ARGV, first, first + 9)
    redis.call('HSET', J .. ':meta', 'sid', sid, 'm', m, 'max', max, 'detached', detached, 'ttl', ttl, 'queue', queue,
      'priority', priority, 'budget', budget, 'state', 'open', 'serial', 0, 'taken', 0)
    redis.call('SET', J .. ':f', f, 'PX', ttl)
    redis.call('HSET', P .. 'jobs', J, label)
    redis.call('ZADD', P .. 'ranks', priority, J)
  end
  first = first + 10
end
local state = redis.call('HMGET', J .. ':meta', 'state', 'serial', 'sid', 'upto')
if not state[1] then return {'gone', 0, 0} end
if state[1] ~= 'open' then return {'stopped', 0, 0} end
local offered, stop = tonumber(ARGV[2]), stop_of(J)
local serial, upto = tonumber(state[2]), tonumber(state[4] or 0)
for i = first, #ARGV, 7 do
  local number = tonumber(ARGV[i])
  if number > serial then -- else: a repeated call
    serial = number
    local id, lo, hi = ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    upto = math.max(upto, hi)
    if stop < 0 or lo < stop then
      if ARGV[i + 6] ~= '' then redis.call('HSET', J .. ':blobs', ARGV[i + 5], ARGV[i + 6]) end
      write_chunk(J, {
        id = id, lo = lo, hi = hi, at = lo, attempt = tonumber(ARGV[i + 4]),
        crashes = 0, losses = 0, blob = ARGV[i + 5], token = '-',
      })
      redis.call('ZADD', J .. ':pending', lo, id)
    end
  end
end
redis.call('HSET', J .. ':meta', 'serial', serial, 'upto', upto)
keep(J)
local messages = mint(J, tonumber(ARGV[1]), offered, 5)
if ARGV[3] == '1' then
  redis.call('XADD', P .. 'wake:' .. state[3], 'MAXLEN', '1', '*', 'j', '')
  redis.call('PEXPIRE', P .. 'wake:' .. state[3], 86400000)
end
return {'ok', redis.call('ZCARD', J .. ':pending'), redis.call('HLEN', J .. ':held'), unpack(messages)}

-- @script claim
-- ARGV: token, ticket, lease ms, first claim of the turn (0/1), blob that the child has, whether it needs the job's
-- meta and function (0/1); then, for a child that lingers when there is no chunk for it, what `linger` takes
-- Returns {"chunk", id, lo, hi, attempt, crashes, blob, payload, stop, session, meta, function}
-- | {"empty", why} | {"drop", why}; with what `linger` returns at the end, if the child lingers.
-- | {"yield", job, ticket}: a more urgent job has work, and here is a turn on it.
local meta = read_meta(J)
if not meta then return {'drop', 'gone'} end
local token, ticket, tickets = ARGV[1], ARGV[2], J .. ':tickets'
-- A repeated call, and the child was rung for in between: what it was handed, under this token, waits for it there.
if ARGV[7] and redis.call('EXISTS', P .. 'bell:' .. ARGV[7]) == 1 then return {'empty', 'rung', false} end
local c, why = held_chunk(J, token)
if not c then
  local function leave(answer, why)
    redis.call('ZREM', tickets, ticket)
    if not ARGV[7] then return {answer, why} end
    return {answer, why, linger(unpack(ARGV, 7))}
  end
  if meta.state ~= 'open' then return leave('drop', meta.state) end
  local score = tonumber(redis.call('ZSCORE', tickets, ticket))
  if not score then return {'drop', 'ticket unknown'} end
  if ARGV[4] == '1' then
    if score > 0 then return {'drop', 'ticket doubled'} end
    redis.call('HSET', J .. ':meta', 'taken', now_ms())
  end
  if not has_client(meta) then return leave('drop', 'session') end
  local urgent = more_urgent(meta)
  if urgent then
    redis.call('ZADD', urgent .. ':tickets', -now_ms(), token) -- in a repeated call the same one
    return {'yield', urgent, token}
  end
  c, why = lease_next(J, meta, token, ticket, tonumber(ARGV[3]))
  if not c then return leave('empty', why) end
end
return {'chunk', describe(J, meta, c, ARGV[5], ARGV[6] == '1')}

-- @script report
-- ARGV: token, from, count, entry ("" for none), new hi (-1: all), finished (0/1)
-- Returns {"ok" | "fenced" | "gap", stop, hi}.
local c = held_chunk(J, ARGV[1])
if not c then return {'fenced', stop_of(J), 0} end
local from, count = tonumber(ARGV[2]), tonumber(ARGV[3])
if from > c.at then return {'gap', stop_of(J), c.at} end
if from == c.at and (count > 0 or ARGV[4] ~= '') then -- of no outcomes: what a running item wrote
  redis.call('XADD', J .. ':out', '*', 'd', ARGV[4])
  c.at = from + count
  local budget = tonumber(redis.call('HGET', J .. ':meta', 'budget') or 0)
  if budget > 0 then
    local bytes = redis.call('HINCRBY', J .. ':meta', 'bytes', #ARGV[4])
    while bytes > budget and redis.call('XLEN', J .. ':out') > 1 do
      local oldest = redis.call('XRANGE', J .. ':out', '-', '+', 'COUNT', 1)[1]
      redis.call('XDEL', J .. ':out', oldest[1])
      bytes = redis.call('HINCRBY', J .. ':meta', 'bytes', -#oldest[2][2])
    end
  end
end
local stop, new_hi = stop_of(J), tonumber(ARGV[5])
if stop >= 0 and stop < c.hi then c.hi = stop end
if new_hi >= c.at and new_hi < c.hi then
  requeue(J, c, new_hi, c.hi, 0, c.losses)
  c.hi = new_hi
end
if c.at >= c.hi or ARGV[6] == '1' then
  give_back(J, c, c.token, c.crashes, c.losses)
else
  write_chunk(J, c)
end
return {'ok', stop, c.hi}

-- @script leave allow-oom
-- The turn is over. ARGV: ticket, successor ("" for none), cap
-- Returns 1 when the successor is to be published, else 0.
if redis.call('ZREM', J .. ':tickets', ARGV[1]) == 0 then
  return redis.call('ZSCORE', J .. ':tickets', ARGV[2]) and 1 or 0
end
if ARGV[2] == '' or redis.call('ZCARD', J .. ':pending') == 0 then return 0 end
redis.call('ZADD', J .. ':tickets', -now_ms(), ARGV[2])
wait_for_message(J, group_of(read_meta(J)), ARGV[2])
return 1

-- @script waiting no-writes
-- ARGV: group. Whether a ticket of the group waits for its turn.
for _, waits in ipairs(redis.call('LRANGE', P .. 'waits:' .. ARGV[1], 0, -1)) do
  local job, ticket = string.match(waits, '^(%S+) (%S+)$')
  if tonumber(redis.call('ZSCORE', job .. ':tickets', ticket) or 1) < 0 then return 1 end
end
return 0

-- @script linger allow-oom
-- ARGV: child, group (session, or session:queue), until ms from now, token, lease ms, job that the child knows
-- Returns a ticket that waits for a message to arrive, or false: then the child is rung for.
return linger(unpack(ARGV))

-- @script unlinger allow-oom
-- ARGV: child, token. Returns what the child was handed and has not heard of, or an empty list.
local bell = redis.call('LPOP', P .. 'bell:' .. ARGV[1], 100)
if bell then return bell end
if unlinger(ARGV[1]) then return {} end
for _, member in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do -- it was taken, and the reply was lost
  local job, token = string.match(member, '^(%S+) (%S+)$')
  local c = token == ARGV[2] and held_chunk(job, token)
  if c then return {job .. ' ' .. c.ticket} end
end
return {}

-- @script rouse allow-oom
-- A child that lingers need not any more. ARGV: child
if unlinger(ARGV[1]) then
  redis.call('RPUSH', P .. 'bell:' .. ARGV[1], '')
  redis.call('PEXPIRE', P .. 'bell:' .. ARGV[1], 60000)
end
return 1

-- @script bury allow-oom
-- A child is dead: it is handed nothing more. ARGV: child. Returns {job, token, ...} of the leases that it has.
local answer = {}
unlinger(ARGV[1])
redis.call('DEL', P .. 'bell:' .. ARGV[1])
for _, member in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  local job, token = string.match(member, '^(%S+) (%S+)$')
  if string.sub(token, 1, #ARGV[1]) == ARGV[1] then
    answer[#answer + 1] = job
    answer[#answer + 1] = token
  end
end
return answer

-- @script release allow-oom
-- A lease ends without its chunk being done. ARGV: token, why ("crash" | "return"), culprit, culprit end (-1, -1:
-- it died outside an item), crash limit, heir token, lease ms, replacement ticket ("" for none)
-- The culprit is known exactly when [culprit, culprit end) is one item; a longer range becomes a suspect chunk, whose
-- items run one by one next time. Returns {"ok" | "fenced", heir's index | -1, publish the ticket (0/1), deaths}.
local c = held_chunk(J, ARGV[1])
if not c then -- perhaps a repeated call: its heir and its ticket are named again, else the ticket would never come
  local heir, ticket = held_chunk(J, ARGV[6]), redis.call('ZSCORE', J .. ':tickets', ARGV[8])
  return {'fenced', heir and heir.at or -1, tonumber(ticket or 0) < 0 and 1 or 0, 0}
end
local from, upto, heir, deaths = math.max(tonumber(ARGV[3]), c.at), math.min(tonumber(ARGV[4]), c.hi), -1, 0
if ARGV[2] == 'crash' and from < upto then
  end_lease(J, c.token)
  redis.call('HDEL', J .. ':chunks', c.id)
  requeue(J, c, c.at, from, 0, c.losses)
  requeue(J, c, upto, c.hi, 0, c.losses)
  c.crashes = c.crashes + 1
  if c.crashes >= tonumber(ARGV[5]) and upto == from + 1 then
    lease_to(J, c, from, upto, ARGV[6], '-', tonumber(ARGV[7]))
    heir = from
  else
    requeue(J, c, from, upto, c.crashes, c.losses)
  end
else
  if ARGV[2] == 'crash' then deaths = redis.call('HINCRBY', J .. ':meta', 'deaths', 1) end
  give_back(J, c, c.token, c.crashes, c.losses)
end
redis.call('ZREM', J .. ':tickets', c.ticket)
local publish = 0
if ARGV[8] ~= '' and redis.call('ZCARD', J .. ':pending') > 0 then
  redis.call('ZADD', J .. ':tickets', -now_ms(), ARGV[8])
  publish = 1
end
return {'ok', heir, publish, deaths}

-- @script verdict allow-oom
-- The whole job failed. ARGV: entry (sealed reason). Returns 1, or 0 when it is not open.
if redis.call('HGET', J .. ':meta', 'state') ~= 'open' then return 0 end
redis.call('HSET', J .. ':meta', 'state', 'failed', 'stop', 0)
redis.call('DEL', J .. ':pending', J .. ':chunks')
redis.call('XADD', J .. ':out', '*', 'd', ARGV[1])
redis.call('PUBLISH', P .. 'ctl', 'stop ' .. J .. ' 0')
return 1

-- @script renew allow-oom
-- ARGV: lease ms, then "job token"... Returns for each: the job's stop (-1: none), or -2 when the lease is lost, which
-- it also is when the job's session is dead.
local until_ms, answers = now_ms() + tonumber(ARGV[1]), {}
for i = 2, #ARGV do
  local job, token = string.match(ARGV[i], '^(%S+) (%S+)$')
  local meta = redis.call('HMGET', job .. ':meta', 'sid', 'detached')
  local answer = -2
  if meta[1] and redis.call('ZSCORE', P .. 'leases', ARGV[i]) then
    local c = held_chunk(job, token)
    if c and meta[2] ~= '1' and redis.call('EXISTS', P .. 's:' .. meta[1]) == 0 then
      give_back(job, c, token, c.crashes, c.losses) -- its client is gone, or sleeps: it may come back
      redis.call('ZREM', job .. ':tickets', c.ticket)
    else
      redis.call('ZADD', P .. 'leases', until_ms, ARGV[i])
      keep(job)
      answer = stop_of(job)
    end
  end
  answers[#answers + 1] = answer
end
return answers

-- @script reap allow-oom
-- Expired leases: their chunks become pending. ARGV: lost limit, heir token prefix, lease ms
-- Returns {job, heir token, lo, hi}... for those that reached the limit, now leased to the caller, who reports them.
local expired = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now_ms(), 'LIMIT', 0, 100)
local lost = {}
for _, member in ipairs(expired) do
  redis.call('ZREM', P .. 'leases', member)
  local job, token = string.match(member, '^(%S+) (%S+)$')
  local c = held_chunk(job, token)
  if c then
    redis.call('ZREM', job .. ':tickets', c.ticket)
    c.losses = c.losses + 1
    if c.losses >= tonumber(ARGV[1]) then
      -- Counted by job, not by call: a repeated call must not give two chunks to one token.
      local heir = ARGV[2] .. string.format('%08x', redis.call('HINCRBY', job .. ':meta', 'heirs', 1))
      end_lease(job, token)
      redis.call('HDEL', job .. ':chunks', c.id)
      lease_to(job, c, c.at, c.hi, heir, '-', tonumber(ARGV[3]))
      lost[#lost + 1] = {job, heir, c.at, c.hi, c.attempt}
    else
      give_back(job, c, token, c.crashes, c.losses)
    end
  end
end
return lost

-- @script stop allow-oom
-- Items at or above ARGV[1] need not run any more; 0 cancels the job. Returns leases held, or -1: no such job.
local state = redis.call('HGET', J .. ':meta', 'state')
if not state then return -1 end
local old, new = stop_of(J), tonumber(ARGV[1])
if old < 0 or new < old then
  redis.call('HSET', J .. ':meta', 'stop', new)
  if new == 0 and state == 'open' then redis.call('HSET', J .. ':meta', 'state', 'cancelled') end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', J .. ':pending', new, '+inf')) do
    redis.call('ZREM', J .. ':pending', id)
    redis.call('HDEL', J .. ':chunks', id)
  end
end
redis.call('PUBLISH', P .. 'ctl', 'stop ' .. J .. ' ' .. stop_of(J))
return redis.call('HLEN', J .. ':held')

-- @script close allow-oom
-- The job has ended. ARGV: state, keep the results (0/1), ttl ms. What remains: a tombstone, and the results.
if redis.call('EXISTS', J .. ':meta') == 0 then return 0 end
for _, token in ipairs(redis.call('HKEYS', J .. ':held')) do
  redis.call('ZREM', P .. 'leases', J .. ' ' .. token)
end
redis.call('DEL', J .. ':pending', J .. ':chunks', J .. ':held', J .. ':blobs', J .. ':tickets', J .. ':f')
redis.call('HSET', J .. ':meta', 'state', ARGV[1])
redis.call('PEXPIRE', J .. ':meta', ARGV[3])
redis.call('ZREM', P .. 'ranks', J)
if ARGV[2] == '1' then
  redis.call('PEXPIRE', J .. ':out', ARGV[3])
else
  redis.call('DEL', J .. ':out')
  redis.call('HDEL', P .. 'jobs', J)
end
return 1

-- @script peek no-writes
-- Returns {state | false, pending, held, tickets alive, ms since a ticket was taken, ms since the oldest ticket
-- that waits was published | -1, unreported lo, hi, ...}; the ranges only with ARGV[1] == "1".
local meta = redis.call('HMGET', J .. ':meta', 'state', 'taken')
local at = now_ms()
local oldest = redis.call('ZRANGEBYSCORE', J .. ':tickets', '-inf', '(0', 'WITHSCORES')
local age = -1
for i = 2, #oldest, 2 do age = math.max(age, at + tonumber(oldest[i])) end
local answer = {
  meta[1], redis.call('ZCARD', J .. ':pending'), redis.call('HLEN', J .. ':held'),
  redis.call('ZCARD', J .. ':tickets'), at - tonumber(meta[2] or 0), age,
}
if ARGV[1] == '1' then
  for _, id in ipairs(redis.call('HKEYS', J .. ':chunks')) do
    local c = read_chunk(J, id)
    answer[#answer + 1] = c.at
    answer[#answer + 1] = c.hi
  end
end
return answer

-- @script account no-writes
-- Returns {id of the stream's last entry, index of the first item not submitted, stop, unreported lo, hi, ...}: what
-- was submitted below the stop and is not among these was reported until that entry.
local upto = tonumber(redis.call('HGET', J .. ':meta', 'upto') or 0)
local newest = redis.call('XREVRANGE', J .. ':out', '+', '-', 'COUNT', 1)[1]
local answer = {newest and newest[1] or '0-0', upto, stop_of(J)}
for _, id in ipairs(redis.call('HKEYS', J .. ':chunks')) do
  local c = read_chunk(J, id)
  answer[#answer + 1] = c.at
  answer[#answer + 1] = c.hi
end
return answer

-- @script backlog no-writes
-- Returns {label, items in the store that are not reported, index of the first one not submitted, stop}... of the jobs
-- that are open and have a client, or are detached.
local answer, labels = {}, redis.call('HGETALL', P .. 'jobs')
for i = 1, #labels, 2 do
  local job = labels[i]
  local meta = redis.call('HMGET', job .. ':meta', 'state', 'sid', 'detached', 'upto')
  if meta[1] == 'open' and (meta[3] == '1' or redis.call('EXISTS', P .. 's:' .. meta[2]) == 1) then
    local stop, items = stop_of(job), 0
    for _, text in ipairs(redis.call('HVALS', job .. ':chunks')) do
      local hi, at = string.match(text, '^%d+ (%d+) (%d+)')
      if stop >= 0 then hi = math.min(hi, stop) end
      items = items + math.max(0, hi - at)
    end
    answer[#answer + 1] = {labels[i + 1], items, tonumber(meta[4] or 0), stop}
  end
end
return answer

-- @script remint
-- Tickets without a lease, not heard of for ARGV[1] ms, are lost: their message, or the child between two chunks.
-- They are forgotten. ARGV: age ms, cap, offered, tickets...
-- Returns the tickets to publish.
local before, busy = now_ms() - tonumber(ARGV[1]), {}
for _, held in ipairs(redis.call('HVALS', J .. ':held')) do busy[string.match(held, '(%S+)$')] = true end
local known = redis.call('ZRANGE', J .. ':tickets', 0, -1, 'WITHSCORES')
for i = 1, #known, 2 do
  if not busy[known[i]] and math.abs(tonumber(known[i + 1])) <= before then
    redis.call('ZREM', J .. ':tickets', known[i])
  end
end
if redis.call('HGET', J .. ':meta', 'state') ~= 'open' then return {} end
keep(J)
return mint(J, tonumber(ARGV[2]), tonumber(ARGV[3]), 4)

-- @script sweep allow-oom
-- What dead jobs left gets the time to live that their results have, until somebody uses them again; what is left of
-- forgotten ones is removed. Returns how many jobs that concerns.
local touched = 0
for _, job in ipairs(redis.call('HKEYS', P .. 'jobs')) do
  local meta = redis.call('HMGET', job .. ':meta', 'state', 'sid', 'detached', 'ttl', 'swept')
  if not meta[1] then
    for _, kind in ipairs(KINDS) do redis.call('DEL', job .. kind) end
    redis.call('DEL', job .. ':f')
    redis.call('HDEL', P .. 'jobs', job)
    redis.call('ZREM', P .. 'ranks', job)
    touched = touched + 1
  elseif not meta[5] and meta[4] then
    local idle = redis.call('HLEN', job .. ':held') == 0
    if meta[3] == '1' then
      idle = idle and redis.call('ZCARD', job .. ':pending') == 0
    else
      idle = idle and redis.call('EXISTS', P .. 's:' .. meta[2]) == 0
    end
    if idle then
      redis.call('HSET', job .. ':meta', 'swept', 1)
      redis.call('PEXPIRE', job .. ':meta', meta[4])
      for _, kind in ipairs(KINDS) do redis.call('PEXPIRE', job .. kind, meta[4]) end
      touched = touched + 1
    end
  end
end
return touched

-- @script wake allow-oom
-- Makes a session read its streams anew. ARGV: session
redis.call('XADD', P .. 'wake:' .. ARGV[1], 'MAXLEN', '1', '*', 'j', '')
redis.call('PEXPIRE', P .. 'wake:' .. ARGV[1], 86400000)
return 1

-- @script session_beat allow-oom
-- A client says that it lives. ARGV: session, what it says (sealed), ms after which it counts as gone (0: never)
redis.call('SET', P .. 's:' .. ARGV[1], ARGV[2])
if ARGV[3] ~= '0' then redis.call('PEXPIRE', P .. 's:' .. ARGV[1], ARGV[3]) end
return 1

-- @script beat allow-oom
-- A worker says that it lives. ARGV: worker, what it says (sealed), ms after which it counts as gone
local at = now_ms()
redis.call('ZADD', P .. 'workers', at + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', P .. 'beats', ARGV[1], ARGV[2])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', at - 60000)) do
  redis.call('ZREM', P .. 'workers', gone)
  redis.call('HDEL', P .. 'beats', gone)
end
return 1

-- @script unbeat allow-oom
-- A worker says goodbye. ARGV: worker
redis.call('ZREM', P .. 'workers', ARGV[1])
redis.call('HDEL', P .. 'beats', ARGV[1])
return 1

-- @script workers no-writes
-- Returns worker, beat, ... of those that live.
local answer = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', now_ms(), '+inf')) do
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('HGET', P .. 'beats', id) or ''
end
return answer
