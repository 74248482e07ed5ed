-- Makes a pending answer an answer, after its signals are in the stream.
--
-- ARGV[1]  the lease
-- ARGV[2]  after so many skips nobody gets a task any more
--
-- Returns 1 if this call did it, 0 if an earlier one had.

local lease, its = ARGV[1], lease_key(ARGV[1])
local about = redis.call('HMGET', its, 'state', 'task', 'who', 'kind', 'repeat', 'drop')
if about[1] ~= 'pending' then return 0 end
local place = redis.call('XADD', base .. 'answers', '*', 'lease', lease)
redis.call('HSET', its, 'state', 'answered', 'place', place)
redis.call('LPUSH', base .. 'given:' .. about[3], lease)
count(lease, 1, tonumber(ARGV[2]))
if about[4] == 'skip' and about[5] == '' then take(about[2], -1) else show(about[2]) end
if about[6] then -- its task was taken back meanwhile, with its answers
    redis.call('HSET', its, 'state', 'undoing', 'again', '')
else
    redis.call('ZREM', base .. 'pending', lease)
end
return 1
