import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import t from 'tap'
import { commandsOn, did } from '../commands.js'
import { image, manifestOf, push, putManifest, randomBlob, scratchDir, startServer } from '../harness.js'
import { digest, startFakeUpstream } from './fake-upstream.js'
import { mirrorOf } from './pair.js'

/*
 * S79: repositories that were pushed to below the names of mirrors that go, come back and deny them. Every order of this
 * is in stores/mirror-owners.test.ts; here is what clients see of it.
 */

t.test(
  'S79: what is pushed where a mirror was stays its owner’s, and clients see no difference',
  async (t) => {
    const upstream = await startFakeUpstream(t)
    const data = join(scratchDir(t), 'owners')
    const run = commandsOn(data)
    const layer = randomBytes(2_000_000)
    upstream.addImage('team/app', 'up', [layer])
    const mirror = (settings: Record<string, unknown> = {}) =>
      mirrorOf(upstream, { name: 'corp', bareNames: false, freshness: '0s', budget: '1MiB', ...settings })
    const start = (mirrors: unknown[]) =>
      startServer(t, { data, config: { mirrors, gc: { interval: '1s', grace: '1s' } } })
    const repository = 'corp/team/app'

    const first = await start([mirror({ budget: '10MiB' })])
    const pulled = await first.request('GET', `/v2/${repository}/manifests/up`)
    t.equal(pulled.status, 200)
    const parts = pulled.json<{ config: { digest: string }; layers: { digest: string }[] }>()
    const fetched = [parts.config.digest, digest(layer)]
    for (const one of fetched)
      t.equal((await first.request('GET', `/v2/${repository}/blobs/${one}`)).status, 200)
    await first.stop()

    // Its layers are here already, says HEAD: only the manifest is pushed.
    const second = await start([])
    const bytes = Buffer.concat([pulled.body, Buffer.from('\n')])
    const mine = manifestOf(bytes)
    t.equal((await putManifest(second, repository, 'mine', mine)).status, 201)
    const own = image({ layers: [randomBlob(3000)] })
    await push(second, 'corp/own/app', 'latest', own)
    t.match((await did(t, run(`tag history ${repository}:mine`))).stdout, /push/)
    await second.stop()

    // The mirror is back, has no room for anything, may not fetch one of the two, and its upstream has both.
    for (const name of ['team/app', 'own/app'])
      for (const tag of ['mine', 'latest']) upstream.addImage(name, tag, [layer])
    upstream.forget()
    const third = await start([mirror({ deny: ['own/**'] })])
    for (const [name, tag, manifest, blobs] of [
      [repository, 'mine', mine.digest, fetched],
      ['corp/own/app', 'latest', own.digest, own.parts.map((part) => part.digest)],
    ] as const) {
      for (const reference of [tag, manifest]) {
        const reply = await third.request('GET', `/v2/${name}/manifests/${reference}`)
        t.equal(reply.headers['docker-content-digest'], manifest, `${name}:${reference}`)
        t.equal((await third.request('HEAD', `/v2/${name}/manifests/${reference}`)).status, 200)
      }
      for (const one of blobs) {
        const reply = await third.request('GET', `/v2/${name}/blobs/${one}`)
        t.equal(digest(reply.body), one)
      }
      t.ok(
        (await third.request('GET', `/v2/${name}/tags/list`)).json<{ tags: string[] }>().tags.includes(tag),
      )
      t.equal((await third.request('GET', `/v2/${name}/referrers/${manifest}`)).status, 200)
      t.equal((await third.request('GET', `/v2/${name}/manifests/nothing`)).status, 404)
      const more = image({ layers: [randomBlob(100)] })
      t.equal((await push(third, name, 'more', more)).status, 201, 'its owner pushes on')
      t.equal((await third.request('DELETE', `/v2/${name}/manifests/more`)).status, 202)
      await did(t, run(`tag restore ${name}:more`))
      t.equal((await third.request('GET', `/v2/${name}/manifests/more`)).status, 200)
    }
    t.equal(upstream.requests.length, 0, 'the upstream hears of none of it')
    const denied = await third.request('GET', '/v2/corp/own/other/manifests/latest')
    t.equal(denied.status, 403, 'what is not here is denied as before')
  },
)
