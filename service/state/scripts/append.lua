-- Append clicks of one user; atomic, and a repeated call changes nothing.
--
-- KEYS: history (list), meta (string), profile (string).
-- ARGV: history length, event ids kept, idle time in ms (0: never expires), then per click:
--       entry = 6 bytes of time in ms, big-endian, and the video id; event fingerprint or ''.
-- Returns {verdicts, one letter each; version; length; 1 where the videos' expiry is due}.
--
-- Layout of meta: keys.py. Entries are compared by number and byte: Lua's "<" on strings
-- follows the server's locale.
local history, meta, profile = KEYS[1], KEYS[2], KEYS[3]
local length, kept, idle = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local HEADER, MARK, GROWTH = 34, 6, 16
local FORMAT = '>c2I8I6I4I4I2I2I6'
local FOREVER = 4294967295  -- "touched" of a user that does not expire

local packed = redis.call('GET', meta)
local version, floor, touched, renewed, count, cursor, newest_time = 0, 0, 0, 0, 0, 0, 0
if packed then
  local _
  _, version, floor, touched, renewed, count, cursor, newest_time = struct.unpack(FORMAT, packed)
end

local function time_of(entry)
  return (struct.unpack('>I6', entry))
end

-- Moves version and expiry on; returns the header, and whether to touch and to renew.
local function next_header()
  local clock = redis.call('TIME')
  local seconds = tonumber(clock[1])
  -- Microseconds, so that the version of a user whose keys are gone never comes back.
  version = math.max(version + 1, seconds * 1000000 + tonumber(clock[2]))
  -- The expiry is moved on rarely: it is a write, too.
  local touch = touched == 0 or (idle == 0) ~= (touched == FOREVER)
    or (idle > 0 and seconds - touched >= idle / 20000)
  if touch then touched = idle > 0 and seconds or FOREVER end
  if renewed == 0 then renewed = seconds end
  local renewal = (idle > 0 and seconds - renewed >= idle / 2000) and 1 or 0
  local header = struct.pack(
    FORMAT, 'M1', version, floor, touched, renewed, count, cursor, newest_time)
  return header, touch, renewal
end

local function move_expiry()
  local life = idle * 1.05
  -- Of a user who was deleted, what is left of the window: a shorter life would forget it.
  if floor > 0 then life = math.max(life, redis.call('PTTL', meta)) end
  for _, key in ipairs({history, meta, profile}) do
    if idle > 0 then
      redis.call('PEXPIRE', key, string.format('%.0f', life))
    else
      redis.call('PERSIST', key)
    end
  end
end

local function seen_in(text, start, mark)
  local at = string.find(text, mark, start, true)
  while at and (at - start) % MARK ~= 0 do
    at = string.find(text, mark, at + 1, true)
  end
  return at ~= nil
end

-- By far the most calls: one click, newer than all before, of a user who is known.
if #ARGV == 5 and packed then
  local entry, mark = ARGV[4], ARGV[5]
  local time = time_of(entry)
  if mark ~= '' and seen_in(packed, HEADER + 1, mark) then
    return {'d', string.format('%.0f', version), count, 0}
  end
  local has_slot = mark == '' or cursor < (#packed - HEADER) / MARK or #packed == HEADER + MARK * kept
  if time > floor and time > newest_time and has_slot then
    -- The first write is one that a full server refuses: all or nothing.
    redis.call('RPUSH', history, entry)
    if count < length then count = count + 1 else redis.call('LPOP', history) end
    newest_time = time
    local slot = cursor % kept
    if mark ~= '' then cursor = slot + 1 end
    local header, touch, renewal = next_header()
    redis.call('SETRANGE', meta, 0, header)
    if mark ~= '' then redis.call('SETRANGE', meta, HEADER + slot * MARK, mark) end
    if touch then move_expiry() end
    return {'a', string.format('%.0f', version), count, renewal}
  end
end

local ring = packed and string.sub(packed, HEADER + 1) or ''
local slots = #ring / MARK
local written = {}  -- slots of the ring that this call fills
local pushed = {}   -- newer than all before, not yet in the list
local entries       -- the whole history, once a click does not simply come last
local changed = false

local function before(a, b)
  local time_a, time_b = time_of(a), time_of(b)
  if time_a ~= time_b then return time_a < time_b end
  for i = 7, math.min(#a, #b) do
    local byte_a, byte_b = string.byte(a, i), string.byte(b, i)
    if byte_a ~= byte_b then return byte_a < byte_b end
  end
  return #a < #b
end

local function remember(mark)
  if cursor >= slots and slots < kept then
    local more = math.min(GROWTH, kept - slots)
    ring = ring .. string.rep('\0', more * MARK)
    slots = slots + more
  end
  cursor = cursor % kept
  ring = string.sub(ring, 1, cursor * MARK) .. mark .. string.sub(ring, (cursor + 1) * MARK + 1)
  written[#written + 1] = cursor
  cursor = cursor + 1
end

local function load_entries()
  entries = redis.call('LRANGE', history, 0, -1)
  for i = 1, #pushed do entries[#entries + 1] = pushed[i] end
  for _ = 1, #entries - length do table.remove(entries, 1) end
  pushed = {}
end

local function insert(entry)
  if not entries then load_entries() end
  local low, high = 1, #entries + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if before(entries[middle], entry) then low = middle + 1 else high = middle end
  end
  if entries[low] == entry then return 'd' end
  if low == 1 and #entries >= length then return 'o' end
  table.insert(entries, low, entry)
  if #entries > length then table.remove(entries, 1); low = low - 1 end
  if low == #entries then return 'a' end
  return 'l'
end

local function place(entry)
  local time = time_of(entry)
  if time <= floor then return 'x' end
  if time > newest_time then
    if entries then return insert(entry) end
    pushed[#pushed + 1] = entry
    if #pushed >= 2 * length then
      local tail = {}
      for i = #pushed - length + 1, #pushed do tail[#tail + 1] = pushed[i] end
      pushed = tail
    end
    return 'a'
  end
  return insert(entry)
end

local verdicts = {}
for i = 4, #ARGV, 2 do
  local entry, mark = ARGV[i], ARGV[i + 1]
  local verdict
  if mark ~= '' and seen_in(ring, 1, mark) then
    verdict = 'd'
  else
    verdict = place(entry)
  end
  if verdict == 'a' or verdict == 'l' then
    changed = true
    if mark ~= '' then remember(mark) end
    if verdict == 'a' then newest_time = time_of(entry) end
  end
  verdicts[#verdicts + 1] = verdict
end

local renewal = 0
if changed then
  -- The first write is one that a full server refuses: all or nothing.
  if entries then
    redis.call('RPUSH', history, unpack(entries))
    redis.call('LTRIM', history, -#entries, -1)
    count = #entries
  else
    redis.call('RPUSH', history, unpack(pushed))
    local before = count
    count = math.min(count + #pushed, length)
    if not packed or before + #pushed > length then
      redis.call('LTRIM', history, -count, -1)
    end
  end
  local header, touch
  header, touch, renewal = next_header()
  if ring == '' or #written > 1 or not packed or #packed ~= HEADER + #ring then
    redis.call('SET', meta, header .. ring, 'KEEPTTL')
  else
    redis.call('SETRANGE', meta, 0, header)
    if written[1] then
      local mark = string.sub(ring, written[1] * MARK + 1, (written[1] + 1) * MARK)
      redis.call('SETRANGE', meta, HEADER + written[1] * MARK, mark)
    end
  end
  if touch then move_expiry() end
end
return {table.concat(verdicts), string.format('%.0f', version), count, renewal}
