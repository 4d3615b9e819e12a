# shellcheck shell=bash disable=SC2154
# What the server itself has to say after all those clients.

# Neither level error nor a status of 5xx.
server_logged_no_errors() {
  expect_no_match 'the log' "$(grep -c . "$WORK/server.log") lines" '^0 '
  expect_no_match 'the log' "$(cat "$WORK/server.log")" '"level":"?(50|60|error|fatal)|"status":5[0-9][0-9]'
}

# Its log is JSON, one object a line: anything else is the runtime complaining (leaks, deprecations, stack traces).
server_logged_no_warnings() {
  local text
  text=$(grep -v '^{.*}$' "$WORK/server.log" || true)
  expect_equal 'lines that are not of the log' "$text" ''
}

server_is_ready() {
  expect_equal 'status of /readyz' "$(api_status GET /readyz)" 200
  expect_match metrics "$(api GET /metrics)" '^boathouse_blobs [1-9]'
}

# The server is a child of the run, not of a check: its exit status is taken outside.
stop_server() {
  kill -TERM "$server_pid"
  wait_until 30 is_gone "$server_pid" >/dev/null
  wait "$server_pid"
  server_status=$?
}

server_ended_well() { expect_equal 'exit status after SIGTERM' "$server_status" 0; }

test_server() {
  if ! own_server; then
    skip 'server: log, readiness and end' 'not our server'
    return
  fi
  check 'server: answered nobody with an error of its own' server_logged_no_errors
  check 'server: logged no warnings of its runtime' server_logged_no_warnings
  check 'server: is still ready' server_is_ready
  stop_server
  check 'server: ends on SIGTERM' server_ended_well
}
