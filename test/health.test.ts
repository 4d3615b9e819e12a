import { execFileSync } from 'node:child_process'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { startCommand } from './commands.js'
import { scratchDir, startServer } from './harness.js'

/** Runs `boathouse health`; what it says besides the word is no matter of tests. */
async function health(args: string[], env: Record<string, string> = {}) {
  const command = startCommand(['health', ...args], { env })
  command.end()
  return command.done
}

t.test('health: 0 while the server answers, 1 when it does not', async (t) => {
  const server = await startServer(t)
  const listen = `127.0.0.1:${server.port}`
  t.match(await health(['--listen', listen]), { code: 0, stdout: 'alive\n', stderr: '' })
  t.match(await health([], { BOATHOUSE_LISTEN: listen }), { code: 0 }, 'by the environment')
  t.match(await health([], { BOATHOUSE_LISTEN: `0.0.0.0:${server.port}` }), { code: 0 }, 'all addresses')
  t.match(
    await health(['--listen', listen], { BOATHOUSE_AUTH: 'token' }),
    { code: 0 },
    'it needs no login, and makes no folder',
  )
  await server.stop()
  t.match(await health(['--listen', listen]), {
    code: 1,
    stdout: '',
    stderr: `http://${listen}/healthz does not answer (ECONNREFUSED).\n`,
  })
})

t.test('health: with TLS, whatever name the certificate has', async (t) => {
  const [certificate, key] = [join(scratchDir(t), 'tls.crt'), join(scratchDir(t), 'tls.key')]
  const subject = ['-subj', '/CN=registry.example.com', '-days', '2', '-nodes']
  const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256']
  execFileSync('openssl', ['req', ...kind, ...subject, '-keyout', key, '-out', certificate], {
    stdio: 'ignore',
  })
  const server = await startServer(t, { config: { tls: { certificate, key } } })
  const tls = { BOATHOUSE_TLS_CERTIFICATE: certificate, BOATHOUSE_TLS_KEY: key }
  t.match(await health(['--listen', `127.0.0.1:${server.port}`], tls), { code: 0, stdout: 'alive\n' })
  t.match(await health(['--listen', `127.0.0.1:${server.port}`]), { code: 1 }, 'plain HTTP is no answer')
})

t.test('health: another program on the port is not the server', async (t) => {
  const other = createServer((_, response) => response.writeHead(500).end()).listen(0, '127.0.0.1')
  t.teardown(() => other.close())
  await new Promise((resolve) => other.once('listening', resolve))
  const listen = `127.0.0.1:${(other.address() as AddressInfo).port}`
  const stderr = `http://${listen}/healthz answers with status 500.\n`
  t.match(await health(['--listen', listen]), { code: 1, stderr })
})

t.test('health: what is wrong with the question', async (t) => {
  t.match(await health(['--listen', '127.0.0.1:0']), { code: 1, stderr: /name one/ })
  t.match(await health(['--listen', 'nonsense']), { code: 2, stderr: /--listen/ })
  t.match(await health(['now']), { code: 2 })
})
