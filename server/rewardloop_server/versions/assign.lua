-- Gives a role beside the active version (canary or shadow) to a version, or ends the role.
--
-- KEYS[1]  rewardloop:{models}:active: hash, model name to the JSON that rewardloop.formats.keys describes
-- ARGV[1]  the model's name
-- ARGV[2]  the role: canary or shadow
-- ARGV[3]  the role's JSON, {"version": .., "share": ..}; '' to end the role
-- ARGV[4]  the version that gets the role; '' to end the role
-- ARGV[5]  the reason, in the caller's words
-- ARGV[6]  the time of the change, ISO 8601 in UTC
-- Returns 1 if the role is as asked now; 0 if the version is the active one, or the model has no active version

local model, role, holder, version, reason, changed_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local raw = redis.call('HGET', KEYS[1], model)
if not raw then return 0 end
local old = cjson.decode(raw)
if old.version == version then return 0 end
-- The rest of the value stays as it is. It is written by hand, because cjson would write an empty list as an object.
local list = #old.previous > 0 and cjson.encode(old.previous) or '[]'
local value = '{"version":' .. cjson.encode(old.version) .. ',"previous":' .. list ..
    ',"changed_at":' .. cjson.encode(changed_at) .. ',"reason":' .. cjson.encode(reason)
for _, each in ipairs({'canary', 'shadow'}) do
    local held = ''
    if each == role then
        held = holder
    elseif old[each] then
        held = string.format('{"version":%s,"share":%.17g}', cjson.encode(old[each].version), old[each].share)
    end
    if held ~= '' then value = value .. ',"' .. each .. '":' .. held end
end
redis.call('HSET', KEYS[1], model, value .. '}')
return 1
