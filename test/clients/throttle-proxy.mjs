// A TCP relay in front of a server: slows the answers down to a rate and notes which requests went through.
//
//   node throttle-proxy.mjs TARGET_PORT BYTES_PER_SECOND MARK_BYTES [CERTIFICATE KEY]
//
// With the PEM files of a certificate it speaks TLS to both sides. Bytes pass unchanged in both directions. What it prints, one line each:
//   port N               it listens on 127.0.0.1:N
//   request METHOD PATH  a request line seen on its way to the server
//   range VALUE          that request's Range header
//   mark                 MARK_BYTES bytes of answers have passed
// A rate of 0 does not slow anything down. When the server goes, the client's connection is reset as it would be
// without us; while it is away, new connections are reset as well.

import { readFileSync } from 'node:fs'
import net from 'node:net'
import tls from 'node:tls'

const [targetPort, bytesPerSecond, markBytes] = process.argv.slice(2, 5).map(Number)
const [certificate, key] = process.argv.slice(5)
const say = (line) => process.stdout.write(`${line}\n`)

let relayed = 0
let marked = false
let freeAt = 0

function countRelayed(bytes) {
  relayed += bytes
  if (marked || relayed < markBytes) return
  marked = true
  say('mark')
}

// One bucket for all connections: the moment at which the bytes just sent would have arrived over a slow line.
function delayFor(bytes) {
  if (bytesPerSecond === 0) return 0
  const now = performance.now()
  freeAt = Math.max(freeAt, now) + (bytes * 1000) / bytesPerSecond
  return freeAt - now
}

// Good enough for clients that send each request's head in one piece, as they all do.
function noteRequests(chunk) {
  for (const line of chunk.toString('latin1').split('\r\n')) {
    const request = /^(GET|HEAD|POST|PUT|PATCH|DELETE) (\/\S*) HTTP\/1\.1$/.exec(line)
    if (request) say(`request ${request[1]} ${request[2]}`)
    const range = /^range: *(\S.*)$/i.exec(line)
    if (range) say(`range ${range[1]}`)
  }
}

function connect() {
  if (certificate === undefined) return net.connect(targetPort, '127.0.0.1')
  return tls.connect({ host: '127.0.0.1', port: targetPort, ca: readFileSync(certificate) })
}

function makeListener() {
  if (certificate === undefined) return net.createServer({ allowHalfOpen: true }, relay)
  const files = { cert: readFileSync(certificate), key: readFileSync(key) }
  return tls.createServer({ ...files, allowHalfOpen: true }, relay)
}

function relay(client) {
  const server = connect()
  client.on('data', (chunk) => {
    noteRequests(chunk)
    if (server.write(chunk)) return
    client.pause()
    server.once('drain', () => client.resume())
  })
  server.on('data', (chunk) => {
    server.pause()
    client.write(chunk, () => {
      countRelayed(chunk.length)
      const delay = delayFor(chunk.length)
      if (delay < 1) server.resume()
      else setTimeout(() => server.resume(), delay)
    })
  })
  client.on('end', () => server.end())
  server.on('end', () => client.end())
  client.on('error', () => server.destroy())
  server.on('error', () => (certificate === undefined ? client.resetAndDestroy() : client.destroy()))
  client.on('close', () => server.destroy())
}

const listener = makeListener()
listener.on('tlsClientError', () => undefined)
listener.listen(0, '127.0.0.1', () => say(`port ${listener.address().port}`))
