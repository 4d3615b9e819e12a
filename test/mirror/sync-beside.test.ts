import { randomBytes } from 'node:crypto'
import t from 'tap'
import { eventually } from '../harness.js'
import { digest } from './fake-upstream.js'
import { arrived, follows, holdBlob, slow, startSyncing } from './sync-fixture.js'

/*
 * A sync and a server on one data folder: each is there for the other's blobs, and neither hangs when the other dies.
 */

const name = 'library/app'

t.test('a blob that a client pulls while a sync fetches it crosses the line once', async (t) => {
  const images = [{ repository: name, tags: ['1'] }]
  const { upstream, start, serve } = await startSyncing(t, { images, config: { workers: 2 } })
  const layer = randomBytes(3_000_000)
  upstream.addImage(name, '1', [layer])
  const server = await serve()
  const { held, release } = holdBlob(upstream, layer)
  const sync = start('mirror', 'sync')
  await eventually('the sync is at it', held, slow)
  const path = `/v2/docker.io/${name}/blobs/${digest(layer)}`
  const pulls = Array.from({ length: 6 }, () => server.request('GET', path, { fresh: true }))
  await eventually('the clients have come', () => follows(server), slow)
  release()
  for (const { body } of await Promise.all(pulls)) t.ok(body.equals(layer))
  t.equal((await sync.done).code, 0)
  t.equal(upstream.asked('GET', new RegExp(digest(layer))).length, 1)
})

t.test('a client finishes what a sync was killed over', async (t) => {
  const images = [{ repository: name, tags: ['1'] }]
  const { upstream, data, start, serve } = await startSyncing(t, { images, config: { workers: 2 } })
  const layer = randomBytes(4_000_000)
  upstream.addImage(name, '1', [layer])
  const server = await serve()
  const { held } = holdBlob(upstream, layer)
  const sync = start('mirror', 'sync')
  await eventually('the sync is at it', () => held() && arrived(data) > 1_000_000, slow)
  const pull = server.request('GET', `/v2/docker.io/${name}/blobs/${digest(layer)}`)
  sync.child.kill('SIGKILL')
  await sync.done
  t.ok((await pull).body.equals(layer))
  const [, request] = upstream.asked('GET', new RegExp(digest(layer)))
  t.match(request?.headers.range, /^bytes=[1-9]\d*-$/, 'from where it was')
})

t.test('a server that starts leaves a sync what it is at', async (t) => {
  const images = [{ repository: name, tags: ['1'] }]
  const { upstream, start, serve } = await startSyncing(t, { images })
  const layer = randomBytes(3_000_000)
  upstream.addImage(name, '1', [layer])
  const { held, release } = holdBlob(upstream, layer)
  const sync = start('mirror', 'sync')
  await eventually('the sync is at it', held, slow)
  const server = await serve()
  const pull = server.request('GET', `/v2/docker.io/${name}/blobs/${digest(layer)}`)
  await eventually('the client has come', () => follows(server), slow)
  release()
  t.ok((await pull).body.equals(layer))
  t.equal((await sync.done).code, 0)
  t.equal(upstream.asked('GET', new RegExp(digest(layer))).length, 1, 'nobody else fetched it')
})
