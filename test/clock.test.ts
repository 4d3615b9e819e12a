import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { fakeClock } from './fake-clock.js'
import {
  eventually,
  image,
  openUpload,
  push,
  pushBlobs,
  randomBlob,
  resumeUpload,
  scratchDir,
  startServer,
} from './harness.js'

/*
 * The system clock jumps by years while the server runs, as it does on machines without a clock of their own when they
 * learn the time. The monotonic clock goes on.
 */
const library = fakeClock()
const skip = library === undefined ? 'libfaketime is missing (on Debian: apt-get install faketime)' : false
const years = 10 * 365 * 86_400

t.test('R60, G12: a clock that jumps by ten years takes nothing from anybody', { skip }, async (t) => {
  const clock = join(scratchDir(t), 'clock')
  const setClock = (seconds: number) => {
    writeFileSync(`${clock}.new`, `${seconds < 0 ? '' : '+'}${seconds}s\n`)
    renameSync(`${clock}.new`, clock)
  }
  setClock(0)
  const server = await startServer(t, {
    config: {
      workers: 1,
      uploads: { expireAfter: '40s' },
      gc: { interval: '200ms', grace: '1h', untagged: '1h' },
      log: { level: 'warn', format: 'json' },
    },
    env: {
      LD_PRELOAD: library ?? '',
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      DONT_FAKE_MONOTONIC: '1',
    },
  })
  const repository = 'team/app'
  const tagged = image()
  await push(server, repository, 'v1', tagged)
  const untagged = image()
  await push(server, repository, untagged.digest, untagged)
  for (const seconds of [years, 0, -years, 0]) {
    const layer = randomBlob(5000)
    await pushBlobs(server, repository, layer)
    const content = randomBlob(300_000)
    const location = await openUpload(server, repository)
    const half = content.bytes.subarray(0, 150_000)
    t.equal((await server.request('PATCH', location, { body: half })).status, 202)
    const said = server.stderr().length
    setClock(seconds)
    await eventually(
      `both have noticed the jump to ${seconds} s`,
      () => {
        const since = server.stderr().slice(said)
        return /nothing is collected/.test(since) && /no upload expires/.test(since)
      },
      60_000,
    )
    const blob = await server.request('HEAD', `/v2/${repository}/blobs/${layer.digest}`)
    t.equal(blob.status, 200, 'a blob that was just pushed is there')
    t.equal((await resumeUpload(server, location, content)).status, 201, 'an upload under way goes on')
    for (const reference of ['v1', untagged.digest]) {
      const reply = await server.request('GET', `/v2/${repository}/manifests/${reference}`)
      t.equal(reply.status, 200, 'a manifest is there')
    }
  }
})
