import { createHash, randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parseAccessToken } from '../../src/auth/access-tokens.js'
import { startCommand } from '../commands.js'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  push,
  RawConnection,
  type Reply,
  scratchDir,
} from '../harness.js'
import { as, basic, bearer, postForm, signingKeyOf, startRegistry, tokenPath } from './fixture.js'

/*
 * Secrets are put wherever a client may put one, rightly or by mistake. Afterwards none of them may be found in
 * the log, in the data folder or in the list of processes: as it is, or in one of the forms that it travelled in.
 */
const secrets = new Map<string, string>()

/** A new secret, remembered under the slot it is for. */
function secret(slot: string): string {
  const text = `canary${randomBytes(12).toString('hex')}`
  secrets.set(slot, text)
  return text
}

/** Remembers a secret that somebody else made. */
function keep(slot: string, text: string): string {
  secrets.set(slot, text)
  return text
}

const adminFile = join(scratchDir(t), 'admin-password')
const adminPassword = secret('admin.passwordFile')
writeFileSync(adminFile, `${adminPassword}\n`)

const registry = await startRegistry(t, {
  config: {
    workers: 2,
    log: { level: 'trace' },
    admin: { passwordFile: adminFile },
    tokens: { refresh: true },
    trustedProxies: ['127.0.0.1'],
  },
})
const { server, access } = registry
const userPassword = secret('password of a user')
await registry.addUser('canary-user', { password: userPassword })
await registry.grant('user:canary-user', 'team/**', 'admin')
const accessToken = keep('access token', await registry.accessToken('canary-user', ['team/**:pull,push']))
keep('secret of the access token', parseAccessToken(accessToken)?.secret ?? 'none')

const replies: Reply[] = []
let address = 0
/** Each request comes from another address, so that none is sent away before it is looked at. */
async function request(
  method: string,
  path: string,
  headers: Record<string, string> = {},
  body?: string,
): Promise<Reply> {
  address++
  const forwarded = { 'X-Forwarded-For': `192.0.${address >> 8}.${address & 255}` }
  const reply = await server.request(method, path, {
    headers: { ...forwarded, ...headers },
    fresh: true,
    unchecked: true,
    ...(body === undefined ? {} : { body }),
  })
  replies.push(reply)
  return reply
}

/** Paths with every kind of outcome: served, refused, unknown, not allowed, invalid. */
const paths: [string, string][] = [
  ['GET', '/v2/'],
  ['GET', '/v2/team/app/manifests/1'],
  ['GET', '/v2/team/app/manifests/none'],
  ['PUT', '/v2/team/app/manifests/1'],
  ['POST', '/v2/other/app/blobs/uploads/'],
  ['DELETE', '/v2/team/app/manifests/none'],
  ['PATCH', '/v2/team/app/tags/list'],
  ['GET', '/v2/_catalog'],
  ['GET', '/v2/Team//x'],
  ['GET', '/v1/search?q=x'],
  ['GET', '/nothing/here'],
  ['GET', '/metrics'],
]

t.test('S63: right and wrong secrets in every slot', async (t) => {
  const base64 = (text: string) => Buffer.from(text).toString('base64')
  const good = await request('GET', `${tokenPath}?scope=repository:team/app:pull,push`, {
    Authorization: basic('canary-user', userPassword),
  })
  t.equal(good.status, 200)
  const token = good.json<{ token: string }>().token
  keep('bearer token', token)
  keep('signature of the bearer token', token.split('.')[2] ?? 'none')
  await push(as(server, basic('canary-user', userPassword)), 'team/app', '1', image())
  const admin = await request('GET', '/v2/_catalog', { Authorization: basic('admin', adminPassword) })
  t.equal(admin.status, 200, 'the admin of the password file')
  t.equal((await request('GET', '/v2/', { Authorization: basic('canary-user', accessToken) })).status, 200)

  for (const [method, path] of paths) {
    const query = path.includes('?') ? '&' : '?'
    const where = `${method} ${path}`
    await request(method, path, {
      Authorization: basic('canary-user', secret(`wrong Basic password, ${where}`)),
    })
    await request(method, path, { Authorization: bearer(secret(`Bearer, ${where}`)) })
    await request(method, path, { Authorization: bearer(token) })
    await request(method, `${path}${query}_token=${secret(`query _token, ${where}`)}`)
    await request(method, `${path}${query}access_token=${token}`)
    await request(method, path, { Cookie: `session=${secret(`cookie, ${where}`)}` })
  }
  for (const [slot, headers] of [
    ['Basic without a colon', (text: string) => ({ Authorization: `Basic ${base64(text)}` })],
    ['Basic, not encoded', (text: string) => ({ Authorization: `Basic canary-user:${text}` })],
    [
      'Basic with a line break',
      (text: string) => ({ Authorization: basic('canary-user', `${text}\n${text}`) }),
    ],
    ['another scheme', (text: string) => ({ Authorization: `Digest ${text}` })],
    ['no scheme', (text: string) => ({ Authorization: text })],
    ['Proxy-Authorization', (text: string) => ({ 'Proxy-Authorization': basic('canary-user', text) })],
    [
      'X-Registry-Auth',
      (text: string) => ({ 'X-Registry-Auth': base64(JSON.stringify({ password: text })) }),
    ],
    ['X-Auth-Token', (text: string) => ({ 'X-Auth-Token': text })],
    ['Referer with a password', (text: string) => ({ Referer: `http://user:${text}@registry.test/v2/` })],
    ['Origin with a password', (text: string) => ({ Origin: `http://user:${text}@registry.test` })],
    ['Host with a password', (text: string) => ({ Host: `user:${text}@registry.test` })],
  ] as const) {
    for (const path of ['/v2/', tokenPath, '/v2/team/app/tags/list']) {
      const text = secret(`${slot}, ${path}`)
      await request('GET', path, headers(text))
    }
  }
  const misplaced = await registry.accessToken('canary-user', ['team/**:pull'])
  keep('access token in the place of the name', misplaced)
  for (const path of ['/v2/', tokenPath])
    await request('GET', path, { Authorization: basic(misplaced, 'x-oauth-basic') })
  await postForm(server, { grant_type: 'password', username: misplaced, password: '' })
})

t.test('S63: forms', async (t) => {
  const post = (form: Record<string, string>) =>
    request(
      'POST',
      tokenPath,
      { 'Content-Type': 'application/x-www-form-urlencoded' },
      new URLSearchParams(form).toString(),
    )
  const whole = { grant_type: 'password', username: 'canary-user', password: userPassword }
  const reply = await post({ ...whole, access_type: 'offline', client_id: 'client' })
  t.equal(reply.status, 200)
  const refresh = keep('refresh token', reply.json<{ refresh_token: string }>().refresh_token)
  keep('secret of the refresh token', parseAccessToken(refresh)?.secret ?? 'none')
  t.equal((await post({ grant_type: 'refresh_token', refresh_token: refresh })).status, 200)

  t.equal((await post({ ...whole, password: secret('wrong form password') })).status, 401)
  t.equal(
    (await post({ grant_type: 'refresh_token', refresh_token: secret('wrong refresh token') })).status,
    401,
  )
  t.equal(
    (
      await post({
        grant_type: 'refresh_token',
        refresh_token: `${refresh}${secret('refresh token and more')}`,
      })
    ).status,
    401,
  )
  t.equal(
    (await post({ grant_type: secret('grant type'), client_secret: secret('client_secret') })).status,
    400,
  )
  t.equal((await post({ ...whole, service: 'other', assertion: secret('assertion') })).status, 400)
  const large = await request(
    'POST',
    tokenPath,
    {},
    `grant_type=password&password=${secret('oversized form')}${'x'.repeat(80_000)}`,
  )
  t.match(large.status, /^4/)
  await request(
    'POST',
    tokenPath,
    { 'Content-Type': 'application/json' },
    JSON.stringify({ ...whole, password: secret('JSON') }),
  )
  await request('POST', tokenPath, {}, `${secret('a body that is no form')}\0%zz`)
  await request(
    'GET',
    `${tokenPath}?grant_type=password&username=canary-user&password=${secret('password in the query')}`,
  )
  await request('POST', `${tokenPath}?password=${secret('password in the query of a POST')}`, {}, '')
})

t.test('S63: what is hardly HTTP', async (t) => {
  const raw = async (text: string) => {
    const connection = await RawConnection.open(server)
    await connection.send(text)
    await connection.waitForReplies(1)
    await connection.close()
  }
  const host = 'Host: registry.test\r\n'
  for (const [method, path] of paths) {
    const text = secret(`URL userinfo, ${method} ${path}`)
    await raw(
      `${method} http://canary-user:${text}@registry.test${path} HTTP/1.1\r\n${host}Content-Length: 0\r\n\r\n`,
    )
  }
  await raw(`GET //user:${secret('userinfo without scheme')}@registry.test/v2/ HTTP/1.1\r\n${host}\r\n`)
  await raw(`GET https://user:${secret('userinfo with https')}@registry.test/v2/?a=b HTTP/1.1\r\n${host}\r\n`)
  await raw(`GET HTTP://${secret('name in the URL')}@registry.test HTTP/1.1\r\n${host}\r\n`)
  await raw(
    `GET /v2/ HTTP/1.1\r\n${host}Authorization: Basic ${secret('a broken header')}\r\nbroken header\r\n\r\n`,
  )
  await raw(
    `GET /v2/ HTTP/1.1\r\n${host}Authorization: ${secret('two lengths')}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n`,
  )
  await raw(
    `GET /v2/ HTTP/1.1\r\n${host}Authorization: Bearer ${secret('an oversized header')}${'x'.repeat(40_000)}\r\n\r\n`,
  )
  await raw(`${secret('no HTTP at all')}\r\n\r\n`)
  await raw(
    `GET /v2/ HTTP/1.1\r\n${host}Authorization: Basic ${'A'.repeat(20_000)}${secret('long Basic')}\r\n\r\n`,
  )
  t.equal((await server.request('GET', '/healthz')).status, 200)
})

t.test('S63: the command line takes no password as an argument', async (t) => {
  const text = secret('password typed at the prompt')
  const command = startCommand(['user', 'add', 'typist', '--data', server.data])
  command.write(`${text}\n`)
  command.end()
  const { code, stdout, stderr } = await command.done
  const output = stdout + stderr
  t.equal(code, 0, output)
  t.notOk(output.includes(text), 'it does not repeat it')
  t.ok(await access.findUser('typist'))
})

// ---------------------------------------------------------------------------------------------
// The search
// ---------------------------------------------------------------------------------------------

/** What a text looks like wherever it stands in something encoded: its base64 at each of the three places. */
function inBase64(text: string): string[] {
  return [0, 1, 2].map((shift) => {
    const encoded = Buffer.from(`${'x'.repeat(shift)}${text}`)
      .toString('base64')
      .replace(/=+$/, '')
    return encoded.slice(shift === 0 ? 0 : 4, -3)
  })
}

const formsOf = (text: string): string[] => [text, ...inBase64(text), Buffer.from(text).toString('hex')]

/** The slots whose secret is found in the bytes. */
function leaksIn(bytes: Buffer): string[] {
  const found: string[] = []
  for (const [slot, text] of secrets) if (formsOf(text).some((form) => bytes.includes(form))) found.push(slot)
  return found
}

function commandLines(): Buffer {
  const lines = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((id) => {
      try {
        return [readFileSync(`/proc/${id}/cmdline`)]
      } catch {
        return [] // the process is gone
      }
    })
  return Buffer.concat(lines)
}

function filesWith(needle: string): string[] {
  return filesBelow(server.data).filter((name) => readFileSync(join(server.data, name)).includes(needle))
}

t.test('S63: the search itself finds what is there', async (t) => {
  t.ok(secrets.size > 60, `${secrets.size} secrets`)
  await eventually('the user is in the log', () => server.stderr().includes('canary-user'))
  t.ok(
    filesWith('canary-user').some((name) => name.startsWith('boathouse.db')),
    'the user is in the database',
  )
  const hash = createHash('sha256')
    .update(secrets.get('secret of the access token') ?? '')
    .digest('hex')
  t.ok(filesWith(hash).length > 0, "the access token's hash is in the database")
  t.ok(commandLines().includes('serve'), 'the server is in the list of processes')
  const slot = 'password of a user'
  const text = secrets.get(slot) ?? ''
  for (const hidden of [text, basic('canary-user', text), basic('a', text), basic('ab', text), `"${text}"`])
    t.same(leaksIn(Buffer.from(`before ${hidden} after`)), [slot], hidden)
})

t.test('S63: no secret in the list of processes, in the log, in any file', async (t) => {
  t.same(leaksIn(commandLines()), [], 'processes')
  const before = filesBelow(server.data)
  t.ok(
    before.some((name) => name.endsWith('-wal')),
    'with the log of the database, which has what was overwritten',
  )
  for (const name of before) t.same(leaksIn(readFileSync(join(server.data, name))), [], name)
  await server.stop()
  for (const name of filesBelow(server.data))
    t.same(leaksIn(readFileSync(join(server.data, name))), [], `${name} after the end`)
  t.same(leaksIn(Buffer.from(server.stderr())), [], 'log')
  t.same(leaksIn(Buffer.from(server.stdout().join('\n'))), [], 'standard output')
  const lines = server.logs().filter(({ msg }) => msg === 'request')
  t.ok(lines.length >= replies.length, `the log has a line for each of ${replies.length} requests`)
})

t.test('S63: no answer repeats a secret, but for those that give one', async (t) => {
  const given = new Set([
    'bearer token',
    'signature of the bearer token',
    'refresh token',
    'secret of the refresh token',
  ])
  const leaks = replies.flatMap((reply) => {
    const bytes = Buffer.from(`${reply.rawHeaders.join('\n')}\n${reply.text}`)
    const found = leaksIn(bytes).filter((slot) => !(reply.status === 200 && given.has(slot)))
    return found.map((slot) => `${reply.method} ${reply.path}: ${slot}`)
  })
  t.same(leaks, [])
})

t.test('S63: the signing key is in its file and nowhere else', async (t) => {
  const { d = '' } = signingKeyOf(server.data).export({ format: 'jwk' })
  const pkcs8 = signingKeyOf(server.data).export({ type: 'pkcs8', format: 'der' }).toString('base64')
  const seed = Buffer.from(d, 'base64url')
  t.equal(seed.length, 32)
  for (const form of [d, pkcs8, seed.toString('hex')]) {
    t.notOk(server.stderr().includes(form), 'log')
    t.same(
      filesWith(form).filter((name) => !name.startsWith('keys/')),
      [],
    )
  }
  t.same(
    filesBelow(server.data).filter((name) => readFileSync(join(server.data, name)).includes(seed)),
    [],
  )
})

everyReplyKeptTheRules(t)
