-- Takes an answer under a lease. It is pending until its signals are in the stream; `commit` ends that.
--
-- ARGV[1]  the labeller's hash
-- ARGV[2]  the lease
-- ARGV[3]  digest of what the labeller said
-- ARGV[4]  the serialized GivenAnswer, without its task
-- ARGV[5]  kind of signal, or 'skip'
-- ARGV[6]  what it says about each pair of candidates
-- ARGV[7]  milliseconds that it took
-- ARGV[8]  the reason of a skip
--
-- Returns 'pending', 'answered' if the same answer was given and committed before, 'other' if another one was, 'taken',
-- 'retracted' or 'unknown'.

local who, lease, its = ARGV[1], ARGV[2], lease_key(ARGV[2])
end_leases()
local about = redis.call('HMGET', its, 'who', 'state', 'task', 'digest', 'repeat')
if about[1] ~= who or about[2] == 'undoing' then return 'unknown' end
if about[2] == 'retracted' then return 'retracted' end
if about[2] == 'pending' or about[2] == 'answered' then return about[4] == ARGV[3] and about[2] or 'other' end
if about[2] == 'ended' and about[5] == '' then
    if not has_place(about[3]) then return 'taken' end
    take(about[3], 1)
end
redis.call(
    'HSET', its, 'state', 'pending', 'digest', ARGV[3], 'given', ARGV[4], 'kind', ARGV[5], 'marks', ARGV[6],
    'ms', ARGV[7], 'reason', ARGV[8]
)
redis.call('ZREM', base .. 'leases', lease)
redis.call('LREM', base .. 'held:' .. who, 0, lease)
redis.call('ZADD', base .. 'pending', whole(now), lease)
return 'pending'
