-- Gives a labeller a task: the one that the labeller has, one again, or a new one.
--
-- ARGV[1]  the labeller's hash
-- ARGV[2]  the labeller
-- ARGV[3]  the labeller's caller; '' without authentication
-- ARGV[4]  id of a new lease
-- ARGV[5]  milliseconds after which a lease ends
-- ARGV[6]  share of the tasks that are drawn uniformly
-- ARGV[7]  share of the tasks that are given again to who has answered them
-- ARGV[8]  a random integer, from which everything is drawn
--
-- Returns {'task', lease, task, order, end of the lease, answered, left, the serialized NewTask, guidelines' version}
-- or {'none', 1 if all tasks are done, answered, open tasks that the labeller had, tasks that others have}.

local who, lease, lease_ms = ARGV[1], ARGV[4], tonumber(ARGV[5])
local uniform_share, repeat_share = tonumber(ARGV[6]), tonumber(ARGV[7])
local person, mine, held = base .. 'who:' .. who, base .. 'mine:' .. who, base .. 'held:' .. who
local FEWEST_BETWEEN, MOST_BETWEEN, LOOKED_AT = 3, 500, 128
math.randomseed(tonumber(ARGV[8]))
end_leases()
redis.call('SADD', base .. 'people', who)
if redis.call('HSETNX', person, 'labeller', ARGV[2]) == 1 then -- new, or erased and here again
    redis.call('HSET', person, 'caller', ARGV[3])
end
local function given(its, task, expires)
    return {
        'task', its, task, redis.call('HGET', lease_key(its), 'order'), whole(expires),
        redis.call('HGET', person, 'answers') or '0', whole(left_for(who) - 1),
        redis.call('HGET', base .. 'tasks', task), redis.call('HGET', base .. 'meta', 'guidelines') or ''
    }
end

for _, its in ipairs(redis.call('LRANGE', held, 0, -1)) do
    local about = redis.call('HMGET', lease_key(its), 'state', 'task', 'repeat')
    if about[1] == 'held' then return given(its, about[2], hold(its, who, lease_ms)) end
    if about[1] == 'ended' and (about[3] ~= '' or has_place(about[2])) then
        if about[3] == '' then take(about[2], 1) end
        return given(its, about[2], hold(its, who, lease_ms))
    end
    local state = about[2] and redis.call('HMGET', task_key(about[2]), 'closed', 'answers', 'wanted') or {}
    if about[1] ~= 'ended' or state[1] or tonumber(state[2] or 0) >= tonumber(state[3]) then
        redis.call('LREM', held, 0, its)
    end
end

local function draw_again()
    local answered = redis.call('LRANGE', base .. 'given:' .. who, FEWEST_BETWEEN, MOST_BETWEEN)
    local may = {}
    for _, its in ipairs(answered) do
        local about = redis.call('HMGET', lease_key(its), 'state', 'task', 'repeat', 'kind')
        if about[1] == 'answered' and about[3] == '' and about[4] ~= 'skip'
            and redis.call('HGET', task_key(about[2]), 'closed') ~= 'retracted'
            and redis.call('SISMEMBER', base .. 'again:' .. who, about[2]) == 0 then
            may[#may + 1] = about[2]
        end
    end
    if #may == 0 then return nil end
    return may[math.random(#may)], 1 / #may
end

local function draw()
    local open = redis.call('ZCARD', base .. 'open')
    local free = open - redis.call('SCARD', mine)
    if free <= 0 then return nil end
    local best
    for start = 0, open - 1, LOOKED_AT do
        for _, task in ipairs(redis.call('ZREVRANGE', base .. 'open', start, start + LOOKED_AT - 1)) do
            if redis.call('SISMEMBER', mine, task) == 0 then best = task break end
        end
        if best then break end
    end
    local task, is_uniform = best, math.random() < uniform_share
    if is_uniform then
        local found
        for _ = 1, LOOKED_AT do
            local at = math.random(open) - 1
            found = redis.call('ZRANGE', base .. 'open', at, at)[1]
            if redis.call('SISMEMBER', mine, found) == 0 then break end
            found = nil
        end
        if not found then -- nearly all are the labeller's own
            local may = {}
            for _, each in ipairs(redis.call('ZRANGE', base .. 'open', 0, -1)) do
                if redis.call('SISMEMBER', mine, each) == 0 then may[#may + 1] = each end
            end
            found = may[math.random(#may)]
        end
        task = found
    end
    return task, uniform_share / free + (task == best and 1 - uniform_share or 0), is_uniform
end

local task, probability, is_uniform
local is_repeat = math.random() < repeat_share
if is_repeat then task, probability = draw_again() end
if task then
    is_uniform = true
    redis.call('SADD', base .. 'again:' .. who, task)
else
    is_repeat = false
    task, probability, is_uniform = draw()
end
if not task then
    local meta = redis.call('HMGET', base .. 'meta', 'tasks', 'done', 'given_up')
    local unfinished = tonumber(meta[1] or 0) - tonumber(meta[2] or 0) - tonumber(meta[3] or 0)
    local own = redis.call('SCARD', mine)
    return {
        'none', unfinished == 0 and 1 or 0, redis.call('HGET', person, 'answers') or '0', own,
        math.max(0, unfinished - redis.call('ZCARD', base .. 'open'))
    }
end

local state = redis.call('HMGET', task_key(task), 'size', 'information', 'scored')
local order = {}
for i = 1, tonumber(state[1]) do order[i] = i - 1 end
for i = #order, 2, -1 do
    local j = math.random(i)
    order[i], order[j] = order[j], order[i]
end
redis.call(
    'HSET', lease_key(lease), 'task', task, 'who', who, 'order', table.concat(order, ' '), 'repeat',
    is_repeat and '1' or '', 'probability', string.format('%.17g', probability), 'uniform', is_uniform and '1' or '',
    'information', state[3] and state[2] or ''
)
redis.call('SADD', base .. 'of:' .. task, lease)
if not is_repeat then
    redis.call('HSET', base .. 'had:' .. task, who, lease)
    take(task, 1)
end
return given(lease, task, hold(lease, who, lease_ms))
