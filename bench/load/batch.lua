-- wrk: POST 1,000 readings that nobody has sent before, with the token BENCH_TOKEN: those of bench/contract.py,
-- from batch number BENCH_FIRST on.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")

local BATCH = 1000
local number = tonumber(os.getenv("BENCH_FIRST"))
local epoch = tonumber(os.getenv("BENCH_EPOCH"))
-- Times of a batch differ in their last three digits alone: all of a body but the digits before stays as it is,
-- and costs the generator next to nothing.
local pieces = {'[{"metric": "m0", "ts": '}
for n = 0, BATCH - 1 do
   local value = string.format('%03d, "value": %s}', n, 20 + n / 100)
   local following = string.format(', {"metric": "m%d", "ts": ', (n + 1) % 10)
   pieces[n + 2] = value .. (n < BATCH - 1 and following or "]")
end

function request()
   local thousands = string.format("%.0f", epoch / BATCH + number)
   number = number + 1
   return wrk.format(nil, nil, nil, table.concat(pieces, thousands))
end
