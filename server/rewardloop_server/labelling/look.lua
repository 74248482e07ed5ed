-- Looks at a project: ends the leases whose time has passed, and returns its figures.
--
-- ARGV  the hashes of labellers
--
-- Returns {meta, kinds, skips, open tasks, leases, unscored tasks, left}. The first three are lists of fields and values;
-- the last one says how many tasks each of the labellers may get.

end_leases()
local left = {}
for i, who in ipairs(ARGV) do left[i] = left_for(who) end
return {
    redis.call('HGETALL', base .. 'meta'), redis.call('HGETALL', base .. 'kinds'), redis.call('HGETALL', base .. 'skips'),
    redis.call('ZCARD', base .. 'open'), redis.call('ZCARD', base .. 'leases'), redis.call('SCARD', base .. 'unscored'),
    left
}
