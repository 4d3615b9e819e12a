import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { runCommand } from './commands.js'
import { fakeClock } from './fake-clock.js'
import {
  eventually,
  image,
  openUpload,
  push,
  pushBlobs,
  randomBlob,
  resumeUpload,
  type Server,
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
/** In milliseconds. */
const hour = 3_600_000

/** A clock for servers, which shows the real time until it is set. */
function startClock(t: Test) {
  const clock = join(scratchDir(t), 'clock')
  const set = (seconds: number) => {
    writeFileSync(`${clock}.new`, `${seconds < 0 ? '' : '+'}${seconds}s\n`)
    renameSync(`${clock}.new`, clock)
  }
  set(0)
  const env = {
    LD_PRELOAD: library ?? '',
    FAKETIME_TIMESTAMP_FILE: clock,
    FAKETIME_NO_CACHE: '1',
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
    DONT_FAKE_MONOTONIC: '1',
  }
  return { set, env }
}

t.test('R60, G12: a clock that jumps by ten years takes nothing from anybody', { skip }, async (t) => {
  const { set: setClock, env } = startClock(t)
  const server = await startServer(t, {
    config: {
      workers: 1,
      uploads: { expireAfter: '20s' },
      gc: { interval: '200ms', grace: '1h', untagged: '1h' },
      log: { level: 'warn', format: 'json' },
    },
    env,
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
    const said = server.logs().length
    setClock(seconds)
    await eventually(
      `both have noticed the jump to ${seconds} s`,
      () => {
        // What was said before the jump may come late: it has the time of before.
        const isSince = (time: unknown) => Math.abs(Number(time) - (Date.now() + seconds * 1000)) < hour
        const since = server
          .logs()
          .slice(said)
          .filter(({ time }) => isSince(time))
        return [/nothing is collected/, /no upload expires/].every((words) =>
          since.some(({ msg }) => words.test(String(msg))),
        )
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

t.test('R60: a clock that is ten years ahead at the start ends no grace', { skip }, async (t) => {
  const { set, env } = startClock(t)
  const gc = { interval: '100ms', grace: '1h', untagged: '1h' }
  const config = { workers: 1, gc, tags: { undo: '1h' } }
  const first = await startServer(t, { config, env })
  const [layer, deleted, untagged] = [randomBlob(5000), image(), image()]
  await pushBlobs(first, 'team/app', layer)
  await push(first, 'team/app', untagged.digest, untagged)
  await push(first, 'team/app', 'v1', deleted)
  t.equal((await first.request('DELETE', `/v2/team/app/manifests/${deleted.digest}`)).status, 202)
  await first.stop()

  set(years)
  const second = await startServer(t, { config, env, data: first.data })
  const { text } = await second.request('GET', '/metrics')
  const runs = (metrics: string) => Number(/^boathouse_gc_runs_total (\d+)/m.exec(metrics)?.[1])
  await eventually(
    'collections come to their end',
    async () => runs((await second.request('GET', '/metrics')).text) > runs(text) + 2,
    60_000,
  )
  t.equal((await second.request('HEAD', `/v2/team/app/blobs/${layer.digest}`)).status, 200)
  t.equal((await second.request('GET', `/v2/team/app/manifests/${untagged.digest}`)).status, 200)
  const restored = await runCommand(first.data, ['tag', 'restore', 'team/app:v1'], '', { env })
  t.equal(restored.code, 0, restored.stderr)
  for (const { digest, bytes } of deleted.parts) {
    t.ok((await second.request('GET', `/v2/team/app/blobs/${digest}`)).body.equals(bytes), 'it was kept')
  }
})

t.test('R60: retention removes no tag for the years that a clock has jumped over', { skip }, async (t) => {
  const { set, env } = startClock(t)
  const rules = [
    { repositories: ['team/**'], keep: [{ pushedWithin: '30d' }] },
    { repositories: ['other/**'], keep: [{ newest: 1 }] },
  ]
  const config = { workers: 1, retention: { schedule: '1s', rules } }
  const first = await startServer(t, { config, env })
  await push(first, 'team/app', 'v1', image())

  /** What the other rule removes tells that a round is over, and that the clock was looked at. */
  async function roundIsOver(server: Server, round: string) {
    const tags = async () =>
      (await server.request('GET', '/v2/other/app/tags/list')).json<{ tags: string[] }>().tags
    for (const tag of [`${round}-old`, `${round}-new`]) await push(server, 'other/app', tag, image())
    await eventually('a round', async () => String(await tags()) === `${round}-new`, 60_000)
    for (const tag of [`${round}-x`, `${round}-y`]) await push(server, 'other/app', tag, image())
    await eventually(
      'a round that began after that',
      async () => String(await tags()) === `${round}-y`,
      60_000,
    )
  }

  const reply = (server: Server) => server.request('GET', '/v2/team/app/manifests/v1')
  set(years)
  await roundIsOver(first, 'ahead')
  t.equal((await reply(first)).status, 200, 'after a jump while it runs')
  await first.stop()
  const second = await startServer(t, { config, env, data: first.data })
  await roundIsOver(second, 'started')
  t.equal((await reply(second)).status, 200, 'after a start with the clock ahead')
})
