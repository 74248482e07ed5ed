-- What every script of labelling shares, the server's and the trainer's; it stands before each of them.
--
-- A task has as many places as labellers are to answer it. A lease that has not ended takes a place, and so does an
-- answer. A skip gives its place back. A task is open while it has a place left and is not closed.
--
-- KEYS[1]  rewardloop:{labelling:<project>}: the prefix of the project's keys; `rewardloop.formats.keys` lists them
-- Every other key is derived from it, and has its hash tag.

local base = KEYS[1]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local ENDED_LEASES_AT_ONCE, RETRACTED_LEASE_MS = 1000, 86400000

local function whole(number) return string.format('%.0f', number) end
local function task_key(task) return base .. 'task:' .. task end
local function lease_key(lease) return base .. 'lease:' .. lease end
local function add(key, field, amount)
    if redis.call('HINCRBY', key, field, amount) == 0 then redis.call('HDEL', key, field) end
end

-- Makes `open` say whether the task is open, and `mine` of those who had it that they may not get it.
local function show(task)
    local state = redis.call('HMGET', task_key(task), 'wanted', 'taken', 'closed', 'information')
    local is_open = state[1] and not state[3] and tonumber(state[2] or 0) < tonumber(state[1])
    local was_open = redis.call('ZSCORE', base .. 'open', task)
    if not is_open and not was_open then return end
    if not was_open then redis.call('ZADD', base .. 'open', state[4], task) end
    if not is_open then redis.call('ZREM', base .. 'open', task) end
    for _, who in ipairs(redis.call('HKEYS', base .. 'had:' .. task)) do
        redis.call(is_open and 'SADD' or 'SREM', base .. 'mine:' .. who, task)
    end
end

local function has_place(task)
    local state = redis.call('HMGET', task_key(task), 'wanted', 'taken', 'closed')
    return state[1] and not state[3] and tonumber(state[2] or 0) < tonumber(state[1])
end

local function take(task, amount)
    add(task_key(task), 'taken', amount)
    show(task)
end

-- Ends the leases whose time has passed. They give their places back, and can be renewed while there is one.
local function end_leases()
    local over = redis.call('ZRANGEBYSCORE', base .. 'leases', '-inf', whole(now), 'LIMIT', 0, ENDED_LEASES_AT_ONCE)
    for _, lease in ipairs(over) do
        redis.call('ZREM', base .. 'leases', lease)
        local about = redis.call('HMGET', lease_key(lease), 'state', 'task', 'repeat')
        if about[1] == 'held' then
            redis.call('HSET', lease_key(lease), 'state', 'ended')
            if about[3] == '' then take(about[2], -1) end
        end
    end
end

-- Gives the labeller the lease, from now on. Its place must have been taken.
local function hold(lease, who, lease_ms)
    local expires = now + lease_ms
    redis.call('HSET', lease_key(lease), 'state', 'held')
    redis.call('ZADD', base .. 'leases', whole(expires), lease)
    redis.call('LREM', base .. 'held:' .. who, 0, lease)
    redis.call('LPUSH', base .. 'held:' .. who, lease)
    return expires
end

-- How many tasks the labeller may get now: open ones, and those of a lease that is held or can be renewed.
local function left_for(who)
    local left = redis.call('ZCARD', base .. 'open') - redis.call('SCARD', base .. 'mine:' .. who)
    for _, lease in ipairs(redis.call('LRANGE', base .. 'held:' .. who, 0, -1)) do
        local about = redis.call('HMGET', lease_key(lease), 'state', 'task', 'repeat')
        local is_ended = about[1] == 'ended' and (about[3] ~= '' or has_place(about[2]))
        if about[1] == 'held' or is_ended then left = left + 1 end
    end
    return left
end

-- How many pairs of candidates two answers both compare, and of how many they say the same; see `comparisons`.
local function compared(one, other)
    local both, same = 0, 0
    for i = 1, math.min(#one, #other) do
        local a, b = string.sub(one, i, i), string.sub(other, i, i)
        if a ~= '?' and b ~= '?' then
            both = both + 1
            if a == b then same = same + 1 end
        end
    end
    return both, same
end

-- Removes what is kept of a task that was taken back, once no answer about it is left.
local function tidy(task)
    if redis.call('HGET', task_key(task), 'closed') ~= 'retracted' then return end
    if redis.call('SCARD', base .. 'of:' .. task) > 0 then return end
    redis.call('DEL', task_key(task), base .. 'had:' .. task, base .. 'said:' .. task)
    redis.call('HDEL', base .. 'tasks', task)
    redis.call('HDEL', base .. 'generations', task)
end

-- Takes a task back, unless it was: nobody gets it any more, and the leases end under which nobody has answered it.
-- Returns whether it did.
local function withdraw(task)
    local state = task_key(task)
    local about = redis.call('HMGET', state, 'closed', 'answers', 'wanted')
    if not about[3] or about[1] == 'retracted' then return false end
    add(base .. 'meta', 'tasks', -1)
    if about[1] == 'skips' then add(base .. 'meta', 'given_up', -1) end
    if tonumber(about[2] or 0) >= tonumber(about[3]) then add(base .. 'meta', 'done', -1) end
    redis.call('HSET', state, 'closed', 'retracted')
    redis.call('SREM', base .. 'unscored', task)
    show(task)
    for _, lease in ipairs(redis.call('SMEMBERS', base .. 'of:' .. task)) do
        local its = lease_key(lease)
        local what = redis.call('HMGET', its, 'state', 'who', 'repeat')
        if what[1] == 'held' or what[1] == 'ended' then
            if what[1] == 'held' and what[3] == '' then add(state, 'taken', -1) end
            redis.call('HSET', its, 'state', 'retracted')
            redis.call('PEXPIRE', its, RETRACTED_LEASE_MS)
            redis.call('ZREM', base .. 'leases', lease)
            redis.call('LREM', base .. 'held:' .. what[2], 0, lease)
            redis.call('SREM', base .. 'of:' .. task, lease)
        end
    end
    return true
end

-- Counts an answer that is about to be one (sign 1), or is none any more (sign -1).
local function count(lease, sign, most_skips)
    local about = redis.call(
        'HMGET', lease_key(lease), 'task', 'who', 'kind', 'marks', 'ms', 'reason', 'repeat', 'self_both', 'self_same'
    )
    local task, who, kind, marks, is_repeat = about[1], about[2], about[3], about[4], about[7] ~= ''
    local state, person, meta = task_key(task), base .. 'who:' .. who, base .. 'meta'
    add(person, 'ms', sign * tonumber(about[5]))
    if sign > 0 then redis.call('HSET', person, 'last', whole(now)) end
    if kind == 'skip' then
        add(person, 'skips', sign)
        if about[6] then add(base .. 'skips', about[6], sign) end -- of an erased one, nothing says why
        if is_repeat then return end
        add(state, 'skips', sign)
        local closed, skips = redis.call('HGET', state, 'closed'), tonumber(redis.call('HGET', state, 'skips') or 0)
        if not closed and skips >= most_skips then
            redis.call('HSET', state, 'closed', 'skips')
            add(meta, 'given_up', 1)
        elseif closed == 'skips' and skips < most_skips then
            redis.call('HDEL', state, 'closed')
            add(meta, 'given_up', -1)
        end
        return
    end
    if is_repeat then
        add(person, 'repeats', sign)
        if sign > 0 then
            local first = redis.call('HGET', base .. 'had:' .. task, who)
            local both, same = compared(marks, first and redis.call('HGET', lease_key(first), 'marks') or '')
            redis.call('HSET', lease_key(lease), 'self_both', both, 'self_same', same)
            about[8], about[9] = both, same
        end
        add(meta, 'self_compared', sign * tonumber(about[8]))
        add(meta, 'self_agreed', sign * tonumber(about[9]))
        return
    end
    add(person, 'answers', sign)
    add(meta, 'answers', sign)
    add(base .. 'kinds', kind, sign)
    redis.call('HDEL', base .. 'said:' .. task, lease)
    local others = redis.call('HGETALL', base .. 'said:' .. task)
    for i = 2, #others, 2 do
        local other_who, other_marks = string.match(others[i], '^(%S+) (.*)$')
        local both, same = compared(marks, other_marks)
        for _, of in ipairs({meta, person, base .. 'who:' .. other_who}) do
            add(of, 'compared', sign * both)
            add(of, 'agreed', sign * same)
        end
    end
    if sign > 0 then redis.call('HSET', base .. 'said:' .. task, lease, who .. ' ' .. marks) end
    add(state, 'answers', sign)
    local after = redis.call('HMGET', state, 'answers', 'wanted', 'closed')
    if after[3] == 'retracted' then return end
    if tonumber(after[1] or 0) - (sign > 0 and 0 or -1) == tonumber(after[2]) then
        add(meta, 'done', sign)
        if sign > 0 and after[3] == 'skips' then
            redis.call('HDEL', state, 'closed')
            add(meta, 'given_up', -1)
        end
    end
end
