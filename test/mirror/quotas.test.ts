import { randomBytes } from 'node:crypto'
import t from 'tap'
import { openUpload, randomBlob, runServerCommand, type Server, startServer } from '../harness.js'
import { checkFolder } from '../torture/checker.js'
import { digest, startFakeUpstream } from './fake-upstream.js'
import { mirrorOf } from './pair.js'

async function usedOf(server: Server): Promise<number> {
  const { stdout } = await runServerCommand(['quota', '--json', '--data', server.data])
  return (JSON.parse(stdout) as { used: number }[])[0]?.used ?? -1
}

t.test(
  'S80: what a mirror fetches counts against no quota, whatever was below its name before',
  async (t) => {
    const upstream = await startFakeUpstream(t)
    const config = { quotas: ['**=1MB'] }
    const first = await startServer(t, { config })
    const names = ['cancelled', 'open', 'begun', 'refused', 'deleted']
    const inMirror = (name: string) => `mirror/${name}`
    const location = await openUpload(first, inMirror('cancelled'))
    t.equal((await first.request('DELETE', location)).status, 204)
    await openUpload(first, inMirror('open'))
    const begun = await openUpload(first, inMirror('begun'))
    t.equal((await first.request('PATCH', begun, { body: Buffer.alloc(1000) })).status, 202)
    const large = randomBlob(1_100_000)
    const path = (name: string, blob: string) => `/v2/${inMirror(name)}/blobs/uploads/?digest=${blob}`
    const refused = await first.request('POST', path('refused', large.digest), { body: large.bytes })
    t.equal(refused.status, 403)
    const deleted = randomBlob(2000)
    const pushed = await first.request('POST', path('deleted', deleted.digest), { body: deleted.bytes })
    t.equal(pushed.status, 201)
    t.equal((await first.request('DELETE', `/v2/mirror/deleted/blobs/${deleted.digest}`)).status, 202)
    t.equal(await usedOf(first), 3000)
    t.same(await first.stop(), { code: 0, signal: null })

    const mirrors = [mirrorOf(upstream, { name: 'mirror' })]
    const second = await startServer(t, { data: first.data, config: { ...config, mirrors } })
    for (const name of names) {
      const layer = randomBytes(600_000)
      upstream.addImage(name, 'latest', [layer])
      const manifest = await second.request('GET', `/v2/mirror/${name}/manifests/latest`)
      t.equal(manifest.status, 200, manifest.text)
      const got = await second.request('GET', `/v2/mirror/${name}/blobs/${digest(layer)}`)
      t.ok(got.body.equals(layer), name)
    }
    t.equal(await usedOf(second), 0, 'nor does what was below its name')
    const own = randomBlob(900_000)
    const post = `/v2/team/app/blobs/uploads/?digest=${own.digest}`
    t.equal((await second.request('POST', post, { body: own.bytes })).status, 201)
    t.equal(await usedOf(second), 900_000)
    t.same(await second.stop(), { code: 0, signal: null })
    // A mirror holds of an image what was asked for.
    const { violations } = checkFolder(second.data, { isCleanStop: true })
    t.same(
      violations.filter((violation) => !violation.startsWith('I2 manifest mirror/')),
      [],
    )
  },
)
