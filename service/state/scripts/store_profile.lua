-- Store a profile unless the history has moved since it was read, or a profile of the same history
-- is there whose facts were read later; give the lease back.
--
-- KEYS: meta, profile, lease. ARGV: history version as in meta, profile, token of the lease, when
--       history and videos were read, in ms. Returns 1 if stored.
--
-- Layout of a profile: packed_profile.py.
if redis.call('GET', KEYS[3]) == ARGV[3] then redis.call('DEL', KEYS[3]) end
if redis.call('GETRANGE', KEYS[1], 2, 9) ~= ARGV[1] then return 0 end
local before = redis.call('GETRANGE', KEYS[2], 0, 19)
if #before == 20 and string.sub(before, 1, 2) == 'P2' then
  local version, read_at = struct.unpack('<i8i8', before, 5)
  if version == struct.unpack('>I8', ARGV[1]) and read_at > tonumber(ARGV[4]) then return 0 end
end
redis.call('SET', KEYS[2], ARGV[2])
local expiry = redis.call('PTTL', KEYS[1])
if expiry > 0 then redis.call('PEXPIRE', KEYS[2], expiry) end
return 1
