import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { parse } from 'yaml'
import { commandsOn, did, offline } from './commands.js'
import {
  eventually,
  everyReplyKeptTheRules,
  RawConnection,
  type RequestOptions,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

/** The project's folder: the tests run two levels below it. */
const root = fileURLToPath(new URL('../../', import.meta.url))
const operations = readFileSync(join(root, 'docs/OPERATIONS.md'), 'utf8')

const index = JSON.stringify({
  schemaVersion: 2,
  mediaType: 'application/vnd.oci.image.index.v1+json',
  manifests: [],
})
const put = (headers: RequestOptions['headers'] = {}): RequestOptions => ({
  body: index,
  headers: { 'Content-Type': 'application/vnd.oci.image.index.v1+json', ...headers },
})

/** The statuses of a push, a pull and a delete by somebody who says nothing about himself. */
async function anonymously(server: Server, headers: RequestOptions['headers'] = {}): Promise<number[]> {
  const path = '/v2/team/app/manifests/1'
  return [
    (await server.request('POST', '/v2/team/app/blobs/uploads/', { headers })).status,
    (await server.request('PUT', path, put(headers))).status,
    (await server.request('GET', path, { headers })).status,
    (await server.request('DELETE', path, { headers })).status,
  ]
}
const open = [202, 201, 200, 202]
const closed = [401, 401, 401, 401]

/** Headers of proxies, as they add them. */
const proxied: Record<string, string>[] = [
  { 'X-Forwarded-For': '203.0.113.9', 'X-Forwarded-Proto': 'https', 'X-Forwarded-Host': 'registry.test' },
  { 'X-Forwarded-For': '' },
  { 'x-forwarded-port': '443' },
  { 'X-FORWARDED-SERVER': 'a' },
  { Forwarded: 'for=203.0.113.9;proto=https' },
  { 'X-Real-IP': '203.0.113.9' },
  { 'CF-Connecting-IP': '203.0.113.9' },
  { 'CF-Ray': '1' },
  { 'True-Client-IP': '203.0.113.9' },
  { Via: '1.1 varnish' },
  { Via: '1.1 boathouse-a1b2, 1.1 nginx' },
  { Via: '2.0 boathouse.example.com' },
  { 'X-Envoy-External-Address': '203.0.113.9' },
  { 'Tailscale-User-Login': 'a' },
]

t.test('S77: the settings of "Behind nginx", as they stand in the guide, ask for a login', async (t) => {
  const section = operations.split('\n## Behind nginx\n')[1]?.split('\n## ')[0] ?? ''
  const [, yaml = ''] = /```yaml\n([\s\S]*?)```/.exec(section) ?? []
  const config = parse(yaml) as Record<string, unknown>
  t.ok(config.publicUrl, 'the guide has settings')
  const server = await startServer(t, { config })
  t.same(await anonymously(server, { 'X-Forwarded-For': '203.0.113.9' }), closed)
  t.same(await anonymously(server), closed)
  t.match(server.stdout().at(-1), / user add NAME --admin/)
})

t.test(
  'S77: an address for others, or a proxy, in the settings means that logins are asked for',
  async (t) => {
    for (const config of [
      { publicUrl: 'https://registry.example.com' },
      { trustedProxies: ['127.0.0.1'] },
      { trustedProxies: '10.0.0.0/8' },
    ]) {
      const server = await startServer(t, { config })
      t.same(await anonymously(server), closed, JSON.stringify(config))
      const written = await startServer(t, { config: { ...config, auth: 'none' } })
      t.same(await anonymously(written), open, `${JSON.stringify(config)}, but none is written`)
    }
  },
)

t.test(
  'S77: what a proxy passes on is refused where nobody wrote that everybody may do everything',
  async (t) => {
    const server = await startServer(t)
    for (const headers of proxied) {
      const name = JSON.stringify(headers)
      t.same(await anonymously(server, headers), [403, 403, 403, 403], name)
      const reply = await server.request('GET', '/v2/', { headers })
      t.equal(reply.code, 'DENIED', name)
      t.match(reply.errors[0]?.message, /came through a proxy.*"auth: token"/, 'the setting is named')
      t.equal((await server.request('GET', '/v2/_catalog', { headers })).status, 403, name)
      t.equal((await server.request('GET', '/v1/search?q=a', { headers })).status, 403, name)
      t.equal((await server.request('GET', '/healthz', { headers })).status, 200, 'health is for everybody')
    }
    const old = await RawConnection.open(server)
    await old.send(`GET /v2/ HTTP/1.0\r\nHost: 127.0.0.1:${server.port}\r\nConnection: close\r\n\r\n`)
    t.equal((await old.reply()).status, 403, 'nginx speaks so unless told otherwise')
    await old.close()
    t.same(await anonymously(server), open, 'this machine goes on')
    t.same(
      await anonymously(server, { Via: '1.1 boathouse-a1b2' }),
      open,
      'so does a mirror of this registry',
    )
    const written = await startServer(t, { config: { auth: 'none' } })
    for (const headers of proxied) t.same(await anonymously(written, headers), open, 'where it is written')
  },
)

t.test('S77: users and grants that are there are asked for, whatever the address', async (t) => {
  const { data, run } = await offline(t)
  await did(t, run('user add alice --admin', 'the admin pulls every rope\n'))
  const server = await startServer(t, { data })
  t.same(await anonymously(server), closed)
  t.ok(
    server.logs().find(({ msg }) => /there are users or grants: a login is asked for/.test(String(msg))),
    'the log says why',
  )
  const basic = `Basic ${Buffer.from('alice:the admin pulls every rope').toString('base64')}`
  t.same(await anonymously(server, { Authorization: basic }), open, 'who has a login may')
  await server.stop()

  const grants = await offline(t)
  await did(t, grants.run('grant pull public/** --to anonymous'))
  const other = await startServer(t, { data: grants.data })
  t.same(await anonymously(other), closed, 'a grant is enough')
  t.equal((await other.request('GET', '/v2/public/app/manifests/1')).status, 404, 'and holds')
  t.match(other.stdout().at(-1), / user add NAME --admin/)
})

t.test(
  'S77: with auth: none written, the log says what is ignored, and the command that nobody is asked',
  async (t) => {
    const { data, run } = await offline(t)
    const env = { BOATHOUSE_AUTH: 'none' }
    const { stderr } = await did(t, run('user add alice --admin', 'the admin pulls every rope\n', { env }))
    t.match(stderr, /auth is none: the server asks nobody/)
    const passwordFile = join(scratchDir(t), '..', 'password')
    const { writeFileSync, rmSync } = await import('node:fs')
    writeFileSync(passwordFile, 'the admin pulls every rope\n')
    t.teardown(() => rmSync(passwordFile, { force: true }))
    const server = await startServer(t, { data, config: { auth: 'none', admin: { passwordFile } } })
    t.same(await anonymously(server), open)
    const warnings = server.logs().filter(({ level }) => level === 40)
    t.match(warnings, [
      { users: 1, grants: 0, msg: /ignored, since auth is none.*"auth: token"/ },
      { msg: /admin\.passwordFile is ignored/ },
    ])
    const unset = await startServer(t, { config: { admin: { passwordFile } } })
    t.same(await anonymously(unset), closed, 'unset, a password for an admin means that logins are wanted')
  },
)

for (const workers of [1, 2]) {
  t.test(`S77: the first user closes a server that was open, at once (workers: ${workers})`, async (t) => {
    const server = await startServer(t, { config: { workers } })
    t.same(await anonymously(server), open)
    t.equal((await server.request('GET', '/auth/token')).status, 404, 'nothing to log in for')
    const run = commandsOn(server.data)
    const { stderr } = await did(t, run('user add alice --admin', 'the admin pulls every rope\n'))
    t.match(stderr, /^A server that only this machine reaches asks for a login from now on/)
    await eventually('everybody is asked for a login', async () => {
      const replies = await Promise.all(
        Array.from({ length: 8 }, () => server.request('GET', '/v2/', { fresh: true })),
      )
      return replies.every(({ status }) => status === 401)
    })
    t.same(await anonymously(server), closed)
    const basic = `Basic ${Buffer.from('alice:the admin pulls every rope').toString('base64')}`
    const scope = 'repository:team/app:pull,push,delete'
    const reply = await server.request('GET', `/auth/token?service=boathouse&scope=${scope}`, {
      headers: { Authorization: basic },
    })
    const bearer = { Authorization: `Bearer ${reply.json<{ token: string }>().token}` }
    t.same(await anonymously(server, bearer), open)
    t.same(await anonymously(server, { ...bearer, 'X-Forwarded-For': '203.0.113.9' }), open)
    await did(t, run('user remove alice --yes --last-admin'))
    t.same(await anonymously(server), closed, 'it does not open again while it runs')
  })
}

everyReplyKeptTheRules(t)
