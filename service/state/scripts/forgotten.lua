-- Log the deletion of a user. KEYS: change log of the group. ARGV: entries kept, user mark, version
-- that the deletion left.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local number = last and tonumber(last[2][2]) + 1 or 1
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*',
  'n', number, 'user', ARGV[2], 'version', ARGV[3])
