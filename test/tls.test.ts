import { execFileSync } from 'node:child_process'
import { copyFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { connect as tlsConnect } from 'node:tls'
import { pino } from 'pino'
import t from 'tap'
import { defaults } from '../config/schema.js'
import { certificateTrouble, watchCertificateTime } from '../src/commands/watching-certificate.js'
import { selfSigned } from './certificate.js'
import {
  eventually,
  everyReplyKeptTheRules,
  image,
  newRepository,
  push,
  pushBlobs,
  RawConnection,
  randomBlob,
  runServerCommand,
  type Server,
  scratchDir,
  send,
  startServer,
} from './harness.js'

const scratch = scratchDir(t)

/** Makes a self-signed certificate for localhost, and its key; gives their paths. */
function makeCertificate(name: string): { certificate: string; key: string } {
  const certificate = join(scratch, `${name}.crt`)
  const key = join(scratch, `${name}.key`)
  execFileSync(
    'openssl',
    [
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'],
      ...['-subj', `/CN=${name}`, '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'],
      ...['-keyout', key, '-out', certificate],
    ],
    { stdio: 'ignore' },
  )
  return { certificate, key }
}

/** The common name of the certificate that the server shows to a new connection. */
function shownName(server: Server): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = tlsConnect({ host: server.host, port: server.port, rejectUnauthorized: false }, () => {
      const { subject } = socket.getPeerCertificate()
      socket.destroy()
      resolve(String(subject.CN))
    })
    socket.on('error', reject)
  })
}

const first = makeCertificate('first')
const second = makeCertificate('second')
const used = { certificate: join(scratch, 'used.crt'), key: join(scratch, 'used.key') }

function install(pair: { certificate: string; key: string }) {
  copyFileSync(pair.certificate, used.certificate)
  copyFileSync(pair.key, used.key)
}

install(first)
const server = await startServer(t, { config: { tls: used, workers: 2 } })

t.test('TLS: with a certificate and a key the server speaks https', async (t) => {
  t.match(server.url, /^https:/)
  const reply = await send(server.url, 'GET', '/v2/', { ca: readFileSync(first.certificate), fresh: true })
  t.equal(reply.status, 200)
  t.equal(await shownName(server), 'first')
})

t.test('TLS, G-14, BL-01: push and pull, with relative Locations', async (t) => {
  const repository = newRepository('tls')
  const manifest = image({ layers: [randomBlob(1_000_000)] })
  const reply = await push(server, repository, 'x', manifest)
  t.equal(reply.header('location'), `/v2/${repository}/manifests/${manifest.digest}`)
  const layer = manifest.parts[1]
  const got = await server.request('GET', `/v2/${repository}/blobs/${layer?.digest}`)
  t.ok(layer && got.body.equals(layer.bytes))
})

/** A connection on which no TLS is spoken. */
const openPlain = () => RawConnection.open({ host: server.host, port: server.port })

t.test('TLS, T-58: plain HTTP on the TLS port is no answer below /v2/, and hurts nobody', async (t) => {
  const connection = await openPlain()
  await connection.request('GET /v2/')
  await connection.closed
  t.notMatch(connection.text, /^HTTP\/1\.1 (2|30)/)
  t.equal((await server.request('GET', '/v2/')).status, 200)
})

t.test('TLS: nothing older than TLS 1.2 is spoken', async (t) => {
  await t.rejects(
    new Promise((resolve, reject) => {
      const socket = tlsConnect({
        host: server.host,
        port: server.port,
        rejectUnauthorized: false,
        minVersion: 'TLSv1',
        maxVersion: 'TLSv1.1',
        ciphers: 'DEFAULT@SECLEVEL=0',
      })
      socket.on('secureConnect', () => resolve(socket.destroy()))
      socket.on('error', reject)
    }),
  )
})

t.test('TLS: new files are taken up without a restart, by every worker, while transfers go on', async (t) => {
  const repository = newRepository('tls')
  const content = randomBlob(20_000_000)
  await pushBlobs(server, repository, content)
  const pull = server.request('GET', `/v2/${repository}/blobs/${content.digest}`, { fresh: true })
  install(second)
  await eventually(
    'many new connections in a row are shown the new certificate',
    async () => {
      const names = await Promise.all(Array.from({ length: 12 }, () => shownName(server)))
      return names.every((name) => name === 'second')
    },
    15_000,
  )
  t.ok((await pull).body.equals(content.bytes))
})

t.test('TLS: files replaced by rename are taken up as well', async (t) => {
  for (const [pair, name] of [
    [first, 'first'],
    [second, 'second'],
  ] as const) {
    for (const kind of ['certificate', 'key'] as const) {
      copyFileSync(pair[kind], `${used[kind]}.new`)
      renameSync(`${used[kind]}.new`, used[kind])
    }
    await eventually(
      `the certificate "${name}"`,
      async () =>
        (await Promise.all(Array.from({ length: 8 }, () => shownName(server)))).every((n) => n === name),
      15_000,
    )
  }
  t.pass('both')
})

t.test('TLS: broken files are reported, and the old certificate stays', async (t) => {
  const before = server.stderr().length
  writeFileSync(used.certificate, 'no certificate')
  await eventually('the log says so', () => /the old one stays/.test(server.stderr().slice(before)), 15_000)
  t.equal(await shownName(server), 'second')
  t.equal((await server.request('GET', '/v2/', { fresh: true })).status, 200)
  install(first)
  await eventually('the next good files', async () => (await shownName(server)) === 'first', 15_000)
  t.notMatch(server.stderr(), /PRIVATE KEY/, 'no key is logged')
})

t.test(
  'TLS: a certificate without key, or with files that do not fit, is refused before the port opens',
  async (t) => {
    const cases: [string, string][][] = [
      [['BOATHOUSE_TLS_CERTIFICATE', first.certificate]],
      [['BOATHOUSE_TLS_KEY', first.key]],
      [
        ['BOATHOUSE_TLS_CERTIFICATE', first.certificate],
        ['BOATHOUSE_TLS_KEY', second.key],
      ],
      [
        ['BOATHOUSE_TLS_CERTIFICATE', join(scratch, 'missing.crt')],
        ['BOATHOUSE_TLS_KEY', first.key],
      ],
      [
        ['BOATHOUSE_TLS_CERTIFICATE', first.key],
        ['BOATHOUSE_TLS_KEY', first.key],
      ],
    ]
    for (const [n, variables] of cases.entries()) {
      const words = ['serve', '--listen', '127.0.0.1:0', '--data', join(scratch, `refused-${n}`)]
      const { code, stdout, stderr } = await runServerCommand(words, Object.fromEntries(variables))
      t.equal(code, 2, `case ${n}: ${stderr}`)
      t.equal(stdout, '')
      t.match(stderr, /tls|certificate|key/i, stderr)
      t.notMatch(stderr, /at .*\.js:\d+/, 'a sentence, not a stack')
    }
  },
)

t.test('S112: a plain HTTP request to the port of HTTPS is told so, logged and counted', async (t) => {
  for (const method of ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']) {
    const connection = await openPlain()
    await connection.request(`${method} /v2/`, ['Content-Length: 0'])
    await connection.closed
    const [reply] = connection.replies()
    t.equal(reply?.status, 400, `${method}: ${connection.text.slice(0, 60)}`)
    t.match(
      reply?.body,
      /^\{"errors":\[\{"code":"REQUEST_INVALID","message":"[^"]*https[^"]*"\}\]\}$/,
      method,
    )
  }
  const told = server.logs().filter((line) => line.msg === 'request' && line.status === 400)
  t.ok(told.length >= 6, 'the log has them')
  const { text } = await server.request('GET', '/metrics')
  t.match(text, /^boathouse_http_requests_total\{route="none",method="other",status="400"\} [1-9]/m)
  const noise = await openPlain()
  await noise.send(Buffer.from([0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]))
  await noise.closed
  t.equal((await server.request('GET', '/v2/')).status, 200)
})

t.test(
  'S112: a certificate that is not valid, or not for long, is told at the start, daily, and by a metric',
  async (t) => {
    const hour = 3_600_000
    const now = Date.now()
    const certificateUntil = (until: number) => selfSigned({ until: new Date(until) })
    t.match(certificateTrouble(certificateUntil(now - hour).certificate, now), {
      isRefused: true,
      sentence: /expired/,
    })
    t.match(certificateTrouble(certificateUntil(now + 48 * hour).certificate, now), {
      isRefused: true,
      sentence: /not valid/,
    })
    t.match(certificateTrouble(certificateUntil(now + hour).certificate, now), {
      isRefused: false,
      sentence: /expires/,
    })
    t.equal(certificateTrouble(certificateUntil(now + 23 * hour).certificate, now), undefined, 'of 25 hours')

    const { certificate, key } = certificateUntil(now - hour)
    const files = { certificate: join(scratch, 'old.crt'), key: join(scratch, 'old.key') }
    writeFileSync(files.certificate, certificate)
    writeFileSync(files.key, key)
    const old = await startServer(t, { config: { tls: files } })
    const said = await eventually('the log says it', () =>
      old.logs().find(({ msg }) => /certificate expired/.test(String(msg))),
    )
    t.equal(said.level, 50)
    const { text } = await old.request('GET', '/metrics')
    const [, expiry] = /^boathouse_tls_certificate_expiry_seconds (\d+)$/m.exec(text) ?? []
    t.equal(Number(expiry), Math.floor((now - hour) / 1000))

    const lines: unknown[] = []
    const logger = pino({ base: null }, { write: (line: string) => void lines.push(JSON.parse(line)) })
    const stop = watchCertificateTime({ ...defaults, tls: files }, logger, 5)
    await eventually('it is said again and again', () => lines.length > 2)
    await stop()
  },
)

everyReplyKeptTheRules(t)
