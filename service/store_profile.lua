-- Store a profile unless the history has moved since it was read.
--
-- KEYS: meta (hash), profile. ARGV: history version, profile bytes. Returns 1 if stored.
if redis.call('HGET', KEYS[1], 'history_version') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
