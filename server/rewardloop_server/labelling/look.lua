-- Looks at a project: ends the leases whose time has passed, and returns its figures.
--
-- Returns {meta, kinds, skips, open tasks, leases, unscored tasks}; the first three are lists of fields and values.

end_leases()
return {
    redis.call('HGETALL', base .. 'meta'), redis.call('HGETALL', base .. 'kinds'), redis.call('HGETALL', base .. 'skips'),
    redis.call('ZCARD', base .. 'open'), redis.call('ZCARD', base .. 'leases'), redis.call('SCARD', base .. 'unscored')
}
