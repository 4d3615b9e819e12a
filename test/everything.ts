import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { selfSigned } from './certificate.js'
import { addUsers, commandsOn, did, type Judge } from './commands.js'
import { image, push, type RequestOptions, type Server, scratchDir, send, startServer } from './harness.js'

/*
 * One server with every feature switched on together, and a client of it that logs in as clients do: a test file that
 * starts its server here runs a second time against it, with the mirror's upstream up or away.
 */

let upstreamIs: 'up' | 'down' | undefined

/** Says, before a test file is imported, that its server shall have everything switched on. */
export function switchEverythingOn(upstream: 'up' | 'down'): void {
  upstreamIs = upstream
}

/** Tap ends a file whose first assertion comes before its tests, so this one throws. */
const judge: Judge = {
  equal(found, wanted, what) {
    if (found !== wanted) throw new Error(`${what}: ${found} in place of ${wanted}`)
  },
}

/** Whether {@link switchEverythingOn} has said so. */
export function isEverythingOn(): boolean {
  return upstreamIs !== undefined
}

/** A server with these settings, and with every feature besides when {@link switchEverythingOn} has said so. */
export async function startServerWithFeatures(t: Test, config: Record<string, unknown>): Promise<Server> {
  if (upstreamIs === undefined) return startServer(t, { config })
  const upstream = await startServer(t)
  await push(upstream, 'library/app', '1', image())
  const server = await startServer(t, { config: { ...featuresOver(t, upstream), ...config } })
  const run = commandsOn(server.data)
  await addUsers(judge, run, 'tester')
  await did(judge, run('grant push,delete ** --to user:tester'))
  logInAt(server)
  const mirrored = await server.request('GET', '/v2/docker.io/library/app/manifests/1')
  judge.equal(mirrored.status, 200, `the mirror serves what its upstream has: ${mirrored.text}`)
  if (upstreamIs === 'down') await upstream.kill()
  return server
}

/** All features as settings. The tags that may not move are those that no client here moves or deletes. */
function featuresOver(t: Test, upstream: Server): Record<string, unknown> {
  const files = selfSigned()
  const certificate = join(scratchDir(t), 'certificate.pem')
  const key = join(scratchDir(t), 'key.pem')
  writeFileSync(certificate, files.certificate)
  writeFileSync(key, files.key, { mode: 0o600 })
  return {
    auth: 'token',
    tls: { certificate, key },
    workers: 3,
    quotas: ['**=20GB', 'docker/**=1GB'],
    tags: {
      undo: '1h',
      immutable: ['docker/**:*', 'ctr/**:*', 'buildkit/**:*', 'oras/**:*', 'scanned/**:*'],
    },
    retention: { schedule: '1s', rules: [{ repositories: ['**'], keep: [{ newest: 100 }] }] },
    gc: { interval: '100ms', grace: '1h', untagged: '1h' },
    verify: { schedule: '*/5 * * * * *', rate: 'unlimited' },
    snapshots: { interval: '1s', keep: 2 },
    mirrors: [{ name: 'docker.io', url: upstream.url, bareNames: true, freshness: '0s' }],
  }
}

/**
 * Makes every request of the server's client one of the tester: what is refused is asked for once more, with a token for what
 * the refusal names. On raw connections, which see one answer only, the password goes along at once.
 */
function logInAt(server: Server): void {
  const basic = `Basic ${Buffer.from('tester:secret').toString('base64')}`
  const ask = server.request
  const tokens = new Map<string, string>()

  async function tokenFor(challenge: string): Promise<string> {
    const known = tokens.get(challenge)
    if (known !== undefined) return known
    const part = (name: string) => new RegExp(`${name}="([^"]*)"`).exec(challenge)?.[1]
    const url = new URL(part('realm') ?? '', server.url)
    for (const name of ['service', 'scope']) {
      const value = part(name)
      if (value !== undefined) url.searchParams.set(name, value)
    }
    const reply = await send(server.url, 'GET', `${url.pathname}${url.search}`, {
      headers: { Authorization: basic },
    })
    const { token } = reply.json<{ token: string }>()
    tokens.set(challenge, token)
    return token
  }

  server.authorization = basic
  server.request = async (method: string, path: string, options: RequestOptions = {}) => {
    const first = await ask(method, path, options)
    if (first.status !== 401) return first
    const token = await tokenFor(first.header('www-authenticate'))
    return ask(method, path, {
      ...options,
      headers: { ...options.headers, Authorization: `Bearer ${token}` },
    })
  }
}
