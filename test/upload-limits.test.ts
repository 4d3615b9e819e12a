import t from 'tap'
import { networkOf } from '../src/http/origin.js'
import { as, basic, startRegistry } from './auth/fixture.js'
import { commandsOn, did, refused } from './commands.js'
import {
  everyReplyKeptTheRules,
  filesBelow,
  finishUpload,
  openUpload,
  randomBlob,
  type Server,
  startServer,
} from './harness.js'

const open = async (server: Server, repository: string, headers: Record<string, string> = {}) =>
  (await server.request('POST', `/v2/${repository}/blobs/uploads/`, { headers })).status

t.test('S100: who opens many uploads takes the places of nobody else, wherever they are', async (t) => {
  const { server, addUser, grant } = await startRegistry(t, {
    config: { uploads: { maxPerRepository: 5, maxPerUser: 3 } },
  })
  await addUser('root', { admin: true })
  for (const user of ['many', 'few']) {
    await addUser(user)
    await grant(`user:${user}`, 'team/**', 'push')
  }
  const [root, many, few] = ['root', 'many', 'few'].map((name) => as(server, basic(name)))
  if (root === undefined || many === undefined || few === undefined) throw new Error('nobody')
  const first = await openUpload(many, 'team/app')
  t.strictSame([await open(many, 'team/app'), await open(many, 'team/other')], [202, 202])
  const over = await many.request('POST', '/v2/team/third/blobs/uploads/')
  t.match(over, { status: 429, code: 'TOOMANYREQUESTS' }, 'the fourth of a user, be it elsewhere')
  t.match(over.header('retry-after'), /^\d+$/)
  const content = randomBlob(100)
  const whole = `/v2/team/third/blobs/uploads/?digest=${content.digest}`
  t.equal((await many.request('POST', whole, { body: content.bytes })).status, 429, 'nor a blob at once')
  const own = await openUpload(few, 'team/app')
  await finishUpload(few, own, content.digest, content.bytes)
  t.equal(await open(root, 'team/app'), 202, 'others push into the same repository')
  t.equal((await few.request('DELETE', first)).status, 404, 'nobody ends what is another’s')
  t.equal((await root.request('DELETE', first)).status, 204, 'but administrators may')
  t.equal((await many.request('GET', first)).status, 404, 'it is gone for its owner, too')
  t.equal(await open(many, 'team/third'), 202, 'whose place is free again')
})

t.test('S100: who did not log in is told from others by the address', async (t) => {
  const server = await startServer(t, {
    config: { auth: 'none', uploads: { maxPerUser: 2 }, trustedProxies: ['127.0.0.1'] },
  })
  const from = (address: string) => open(server, 'a', { 'X-Forwarded-For': address })
  for (const address of ['192.0.2.1', '192.0.2.2', '2001:db8:1:1::1', '2001:db8:1:2::1']) {
    t.strictSame([await from(address), await from(address), await from(address)], [202, 202, 429], address)
  }
  t.equal(await from('2001:db8:1:1:ffff::2'), 429, 'a network has many addresses for one client')
  t.equal(await open(server, 'a'), 202, 'the proxy itself is another')
})

t.test('S100: a network of IPv6 addresses is its first 64 bits, however it is written', async (t) => {
  for (const address of [
    '2001:db8::1',
    '2001:DB8:0:0:1:2:3:4',
    '2001:0db8:0000::ffff%eth0',
    '2001:db8::1.2.3.4',
  ]) {
    t.equal(networkOf(address), '2001:db8:0:0::/64', address)
  }
  t.equal(networkOf('fe80::1:2:3:4'), 'fe80:0:0:0::/64')
  t.equal(networkOf('1:2:3:4:5:6:7::'), '1:2:3:4::/64')
  t.equal(networkOf('::1'), '0:0:0:0::/64')
  t.equal(networkOf('192.0.2.1'), '192.0.2.1')
  t.equal(networkOf(''), '')
})

t.test('S100: boathouse uploads lists what is open and ends it, beside a running server', async (t) => {
  const { server, addUser, grant } = await startRegistry(t)
  const run = commandsOn(server.data)
  t.match(await did(t, run('uploads list')), { stdout: 'No upload is open.\n' })
  for (const user of ['ann', 'ben']) {
    await addUser(user)
    await grant(`user:${user}`, '**', 'push')
  }
  const ann = as(server, basic('ann'))
  const ben = as(server, basic('ben'))
  const places = [await openUpload(ann, 'a'), await openUpload(ann, 'b'), await openUpload(ben, 'a')]
  const [one = '', two = '', three = ''] = places
  t.equal((await ann.request('PATCH', one, { body: 'seven b' })).status, 202)
  const list = async (words = '') =>
    JSON.parse((await did(t, run(`uploads list --json${words}`))).stdout) as Record<string, unknown>[]
  const all = await list()
  t.equal(all.length, 3)
  t.match(
    all.find(({ id }) => one.includes(String(id))),
    { repository: 'a', user: 'ann', bytes: 7, isBusy: false },
  )
  t.equal((await list(' a')).length, 2, 'those of one repository')
  t.match((await did(t, run('uploads list'))).stdout, /REPOSITORY +WHOSE[\s\S]* a +ann +7 B /)
  const idOf = (place: string) => place.split('/').at(-1) ?? ''
  await refused(t, run(`uploads cancel ${idOf(one)}x`), 1, /There is no open upload/)
  t.match((await did(t, run(`uploads cancel ${idOf(one)}`))).stdout, /^1 upload was/)
  t.equal((await ann.request('GET', one)).status, 404, 'it is gone')
  t.strictSame(filesBelow(`${server.data}/uploads`), [], 'with its bytes')
  t.match((await did(t, run('uploads cancel --user ann'))).stdout, /^1 upload was/)
  t.equal((await ann.request('GET', two)).status, 404)
  t.equal((await ben.request('GET', three)).status, 204, 'others’ stay')
  t.match((await did(t, run('uploads cancel --repository a'))).stdout, /^1 upload was/)
  t.strictSame(await list(), [])
  await refused(t, run('uploads cancel'), 2, /Say which/)
  await refused(t, run('uploads'), 2, /list, cancel/)
})

everyReplyKeptTheRules(t)
