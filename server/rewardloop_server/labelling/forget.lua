-- Removes an answer that is being undone, after its signals were taken back, and gives its task again if it was undone
-- by its labeller.
--
-- ARGV[1]  the lease
-- ARGV[2]  milliseconds after which the new lease ends
-- ARGV[3]  after so many skips nobody gets a task any more
--
-- Returns the end of the new lease in Unix milliseconds, '' if there is none, or '0' if an earlier call did it.

local lease, its = ARGV[1], lease_key(ARGV[1])
local about = redis.call(
    'HMGET', its, 'state', 'task', 'who', 'kind', 'repeat', 'again', 'place', 'order', 'probability', 'uniform',
    'information'
)
local task, who, again = about[2], about[3], about[6]
if about[1] ~= 'undoing' then return '0' end
count(lease, -1, tonumber(ARGV[3]))
redis.call('XDEL', base .. 'answers', about[7])
redis.call('LREM', base .. 'given:' .. who, 0, lease)
redis.call('ZREM', base .. 'pending', lease)
redis.call('SREM', base .. 'of:' .. task, lease)
redis.call('DEL', its)
if again == '' then
    if about[5] == '' and about[4] ~= 'skip' then take(task, -1) end
    tidy(task)
    return ''
end
redis.call(
    'HSET', lease_key(again), 'task', task, 'who', who, 'order', about[8], 'repeat', about[5],
    'probability', about[9], 'uniform', about[10], 'information', about[11]
)
redis.call('SADD', base .. 'of:' .. task, again)
if about[5] == '' then redis.call('HSET', base .. 'had:' .. task, who, again) end
show(task)
return whole(hold(again, who, tonumber(ARGV[2])))
