import { join } from 'node:path'
import t from 'tap'
import { digestOf } from '../src/oci/digest.js'
import { parseRepositoryName, parseTag } from '../src/oci/reference.js'
import { parseRepositoryPattern } from '../src/oci/repository-pattern.js'
import { livedSince } from '../src/registry/lived-time.js'
import { Retention } from '../src/registry/retention.js'
import { openSqliteStores, prepareSqlite } from '../storage/sqlite-metadata-store.js'
import { commandsOn, did, refused } from './commands.js'
import {
  eventually,
  filesBelow,
  image,
  index,
  push,
  putManifest,
  scratchDir,
  startServer,
  tagsOf,
} from './harness.js'

t.setTimeout(240_000)

const rules = (...list: unknown[]) => ({ BOATHOUSE_RETENTION_RULES: JSON.stringify(list) })

t.test(
  'tags that no rule keeps go; immutable ones, parts and signatures of kept ones stay (R13, S24, RF-13)',
  async (t) => {
    const server = await startServer(t, { config: { tags: { immutable: ['**:fixed'] } } })
    const run = commandsOn(server.data)
    const images = Array.from({ length: 5 }, () => image())
    const [first, , , , last] = images
    if (first === undefined || last === undefined) throw new Error('no images')
    await push(server, 'team/app', 'fixed', first)
    const part = image()
    await push(server, 'team/app', 'part', part)
    await push(server, 'team/app', 'multi', index([part]))
    const signature = (digest: string) => `${digest.replace(':', '-')}.sig`
    await push(server, 'team/app', signature(last.digest), image())
    await push(server, 'team/app', signature(first.digest).replace(/.{4}\.sig$/, '0000.sig'), image())
    for (const version of ['v1.0.0', 'v2.0.0-rc.1', '1.5'])
      await putManifest(server, 'team/app', version, first)
    for (const [at, one] of images.entries()) await push(server, 'team/app', `t${at + 1}`, one)
    await push(server, 'other/app', 'stays', first)
    const env = {
      ...rules({
        repositories: ['team/**'],
        keep: [{ newest: 2 }, { tags: ['multi'] }, { versions: '>=1.0.0' }],
      }),
      BOATHOUSE_TAGS_IMMUTABLE: '**:fixed',
    }
    const before = await tagsOf(server, 'team/app')
    const dry = await did(t, run('retention --dry-run --json', '', { env }))
    const told = JSON.parse(dry.stdout) as { tags: { tag: string; kept: boolean; why: string }[] }
    const kept = new Map(told.tags.filter((one) => one.kept).map(({ tag, why }) => [tag, why]))
    const expected = [
      'fixed',
      'multi',
      'part',
      signature(last.digest),
      't4',
      't5',
      'v1.0.0',
      'v2.0.0-rc.1',
    ].sort()
    t.strictSame([...kept.keys()].sort(), expected)
    t.equal(kept.get('t5'), 'among the newest 2')
    t.equal(kept.get('part'), 'it belongs to multi, which is kept')
    t.equal(kept.get('fixed'), 'it is immutable')
    t.strictSame(await tagsOf(server, 'team/app'), before, 'a dry run removes nothing')
    const asked = await run('retention', '', { env })
    t.match(asked, { code: 2, stderr: /There is no terminal to ask on: add --yes/ })
    t.match((await did(t, run('retention --yes other/*', '', { env }))).stdout, 'Removed 0 tags.')
    t.match((await did(t, run('retention --yes', '', { env }))).stdout, 'Removed 5 tags.')
    t.strictSame(await tagsOf(server, 'team/app'), expected)
    t.strictSame(await tagsOf(server, 'other/app'), ['stays'], 'without a rule nothing is touched')
    await did(t, run('tag restore team/app:t3', '', { env }))
    t.match((await did(t, run('retention --yes', '', { env }))).stdout, 'Removed 0 tags.', 'restored lately')
    await refused(t, run('retention --yes'), 1, /There are no rules/)
  },
)

t.test(
  'the server follows the rules by itself, and the disk comes back though gc.untagged is unset',
  async (t) => {
    const server = await startServer(t, {
      config: {
        gc: { interval: '100ms', grace: '5s' },
        retention: { schedule: '1s', rules: [{ repositories: ['team/**'], keep: [{ newest: 2 }] }] },
      },
    })
    for (let at = 1; at <= 5; at++) await push(server, 'team/app', `t${at}`, image())
    const blobs = () => filesBelow(`${server.data}/blobs`).length
    await eventually(
      'old tags go',
      async () => (await tagsOf(server, 'team/app'))?.join() === 't4,t5',
      60_000,
    )
    await eventually('the disk comes back', () => blobs() === 6, 60_000)
  },
)

t.test(
  'a tag that was restored stays for its time, of which only counts when a server ran (R60)',
  async (t) => {
    const day = 86_400_000
    const now = 1_700_000_000_000
    const path = join(scratchDir(t), 'boathouse.db')
    prepareSqlite(path)
    const { metadata, tags } = await openSqliteStores({ path, onFatal: (error) => t.fail(error) })
    t.teardown(() => metadata.close())
    const repository = parseRepositoryName('team/app')
    const bytes = Buffer.from('an image')
    await metadata.putManifest({
      repository,
      digest: digestOf(bytes),
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      bytes,
      children: [],
      tags: [parseTag('v1')],
      subject: undefined,
      artifactType: undefined,
      annotations: undefined,
      sparse: true,
      immutable: [],
      condition: undefined,
      user: undefined,
      now: now - 10 * day,
    })
    await metadata.deleteTag(repository, parseTag('v1'), { immutable: [], now: now - day })
    const restored = {
      repository,
      tag: parseTag('v1'),
      to: 'previous' as const,
      immutable: [],
      user: undefined,
      now,
    }
    t.match(await tags.restoreTag(restored), { outcome: 'restored' })
    await tags.noteRunning(now - 10 * day, 20 * day)
    await tags.noteRunning(now + 1000, 20 * day)
    await tags.noteRunning(now + 30 * day, 20 * day)
    const rules = [{ repositories: [parseRepositoryPattern('**')], keep: [{ tags: ['other'] }] }]
    const keptAt = async (clock: number) => {
      const retention = new Retention(tags, { rules, immutableTags: () => [], undo: day, clock: () => clock })
      return (await retention.judge(repository)).map(({ isKept }) => isKept)
    }
    t.strictSame(await keptAt(now + 30 * day), [true], 'a month without a server is none')
    await tags.noteRunning(now + 32 * day, 20 * day)
    t.strictSame(await keptAt(now + 32 * day), [false], 'a day with one is')
  },
)

t.test('time for which no server ran, or that a clock has jumped over, does not count (R60)', async (t) => {
  const day = 86_400_000
  const now = 1_700_000_000_000
  const decade = 3650 * day
  t.equal(livedSince(now, 30 * day, []), now - 30 * day, 'nothing is recorded')
  const steady = [{ beganAt: now - 90 * day, endedAt: now - 1000 }]
  t.equal(livedSince(now, 30 * day, steady), now - 30 * day)
  t.equal(livedSince(now, 100 * day, steady), now - 100 * day, 'before the first record all counts')
  t.equal(livedSince(now + decade, 30 * day, steady), now - 1000 - 30 * day, 'a clock ten years ahead')
  const after = [{ beganAt: now + decade, endedAt: now + decade + day }, ...steady]
  t.equal(livedSince(now + decade + day, 30 * day, after), now - 1000 - 29 * day, 'and on from there')
})
