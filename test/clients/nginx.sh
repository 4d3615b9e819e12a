# shellcheck shell=bash disable=SC2154
# A real nginx in front of a server, each with the settings that "Behind nginx" of docs/OPERATIONS.md has, word for word but for
# the ports and the paths of the certificate: nobody gets in without a login.
#
# Sourced. Groups: nginx.

guide=$suite_dir/../../docs/OPERATIONS.md

# guide_block LANGUAGE: the first block of code of this language in "Behind nginx".
guide_block() {
  awk -v open="\`\`\`$1" '
    /^## / { inside = ($0 == "## Behind nginx") }
    inside && $0 == open && !done { taking = 1; next }
    taking && /^```/ { taking = 0; done = 1 }
    taking { print }' "$guide"
}

start_behind_nginx() {
  local folder=$WORK/nginx
  nginx_port=$(free_port)
  mkdir -p "$folder"
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout "$folder/key.pem" -out "$folder/cert.pem" \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>/dev/null
  guide_block yaml >"$folder/boathouse.yaml"
  grep -q '^publicUrl:' "$folder/boathouse.yaml"
  start_server_beside nginx-data BOATHOUSE_CONFIG="$folder/boathouse.yaml" || return 1
  {
    printf 'daemon off; user root; pid %s/pid; error_log %s/error.log;\nevents {}\nhttp {\naccess_log off;\n' "$folder" "$folder"
    guide_block nginx | sed -e "s#127\.0\.0\.1:5000#$other_registry#" -e "s#listen 443 ssl#listen 127.0.0.1:$nginx_port ssl#" \
      -e "s#/etc/ssl/registry/fullchain.pem#$folder/cert.pem#" -e "s#/etc/ssl/registry/key.pem#$folder/key.pem#"
    printf '}\n'
  } >"$folder/nginx.conf"
  start_process "$folder/log" nginx -c "$folder/nginx.conf"
  wait_until 30 nginx_answers
}
nginx_answers() { curl -sk -o /dev/null "https://127.0.0.1:$nginx_port/v2/"; }

# through_nginx METHOD PATH [curl arguments…]: the status alone.
through_nginx() {
  local method=$1 path=$2
  shift 2
  curl -sk --max-time 60 -o /dev/null -w '%{http_code}' -X "$method" "$@" "https://127.0.0.1:$nginx_port$path"
}

nginx_is_closed() {
  local digest
  digest=sha256:$(printf hello | sha256sum | cut -d ' ' -f 1)
  expect_equal 'the base' "$(through_nginx GET /v2/)" 401
  expect_equal 'a push of a blob' "$(through_nginx POST "/v2/a/blobs/uploads/?digest=$digest" --data-binary hello)" 401
  expect_equal 'a push of a manifest' "$(through_nginx PUT /v2/a/manifests/1 --data-binary '{}')" 401
  expect_equal 'a delete' "$(through_nginx DELETE /v2/a/manifests/1)" 401
  expect_equal 'the list' "$(through_nginx GET /v2/_catalog)" 401
  expect_equal 'metrics stay inside' "$(through_nginx GET /metrics)" 404
}

nginx_login_works() {
  local digest
  boathouse_on "$WORK/nginx-data" user add alice --admin <<<'the admin pulls every rope'
  digest=sha256:$(printf hello | sha256sum | cut -d ' ' -f 1)
  expect_equal 'a push with a login' \
    "$(through_nginx POST "/v2/a/blobs/uploads/?digest=$digest" --data-binary hello -u 'alice:the admin pulls every rope')" 201
  expect_equal 'and none without' "$(through_nginx GET "/v2/a/blobs/$digest")" 401
  expect_match 'the realm' "$(curl -sk -D - -o /dev/null "https://127.0.0.1:$nginx_port/v2/")" 'realm="https://registry.example.com/auth/token"'
}

# The same nginx before a server whose settings say nothing, with each header that tells of it, and with none.
start_before_open_server() {
  local folder=$WORK/nginx-open variant port
  open_nginx_port=$(free_port)
  port=$open_nginx_port
  mkdir -p "$folder"
  start_server_beside open-data || return 1
  {
    printf 'daemon off; user root; pid %s/pid; error_log %s/error.log;\nevents {}\nhttp {\naccess_log off;\n' "$folder" "$folder"
    printf 'server { listen 127.0.0.1:%s;\n' "$port"
    printf 'location /plain/ { proxy_pass http://%s/; }\n' "$other_registry"
    for variant in X-Forwarded-For X-Real-IP Forwarded; do
      printf 'location /%s/ { proxy_pass http://%s/; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header %s $remote_addr; }\n' \
        "$variant" "$other_registry" "$variant"
    done
    printf '} }\n'
  } >"$folder/nginx.conf"
  start_process "$folder/log" nginx -c "$folder/nginx.conf"
  wait_until 30 curl -s -o /dev/null "http://127.0.0.1:$port/plain/v2/"
}

nginx_before_an_open_server() {
  local variant port=$open_nginx_port
  expect_equal 'this machine is let in' "$(curl -s -o /dev/null -w '%{http_code}' "http://$other_registry/v2/")" 200
  for variant in plain X-Forwarded-For X-Real-IP Forwarded; do
    expect_equal "through a proxy ($variant)" "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/$variant/v2/")" 403
  done
  expect_match 'the sentence' "$(curl -s "http://127.0.0.1:$port/plain/v2/")" 'auth: token'
}

test_nginx() {
  # TLS ends at nginx, and the guide says who may do what.
  local features=()
  if everything_on; then features=("${keeping_features[@]}"); fi
  # Not within checks: what they start would not end with the run.
  start_behind_nginx >"$WORK/nginx.log" 2>&1
  check 'nginx: the guide, word for word, starts' nginx_answers
  check 'nginx: nobody gets in without a login' nginx_is_closed
  check 'nginx: a login does' nginx_login_works
  start_before_open_server >>"$WORK/nginx.log" 2>&1
  check 'nginx: a server without settings refuses what a proxy passes on' nginx_before_an_open_server
}
