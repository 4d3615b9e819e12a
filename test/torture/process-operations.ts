import { cpSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { migrate } from '../../storage/migrations.js'
import { checkFolder, type StoredIndex } from './checker.js'
import { digestOf } from './content.js'
import type { Key } from './model.js'
import { pushImage } from './operations.js'
import { Random } from './random.js'
import type { Scene } from './scene.js'

/** What a process of its own does: a command, or the start of a server. */
export interface ProcessOperation {
  readonly name: string
  /** The words of the command; undefined for the start of a server. */
  readonly words?: (scene: Scene) => readonly string[]
  readonly env?: Readonly<Record<string, string>>
  /** Makes the folder that it works on; no server runs before and after. */
  prepare(scene: Scene): Promise<void>
  /** Says what it may do to what is known; called before each try. @param index before it, if not the scene's own */
  foresee?(scene: Scene, index?: StoredIndex): void
  /** Says what it has done for certain; called when it has ended well. */
  conclude?(scene: Scene): void
  /** Whether the data folder may be no folder of a server while it is interrupted. */
  readonly isFolderOpen?: boolean
  /** Whether it is refused where it was done. */
  readonly isOnce?: boolean
  /** Whether a started server has done it, beside its first collection. */
  isDone?(scene: Scene): boolean
  /** Whether what it has made is durable when it is over. */
  readonly isDurable?: boolean
  /** Looks at what it has made: also when it was interrupted. */
  check?(scene: Scene, isComplete: boolean): Promise<void>
}

const collecting = { BOATHOUSE_GC_GRACE: '10ms', BOATHOUSE_GC_UNTAGGED: '10ms' }

/** Some images in a new folder. */
async function fill(scene: Scene, variants: readonly number[]): Promise<void> {
  await scene.start()
  for (const variant of variants) await pushImage(scene, variant)
  await scene.stop()
}

/** Everything that is known of a repository but of one whose image is not kept. */
function keysOf(
  scene: Scene,
  isMeant: (repository: string) => boolean,
  index = checkFolder(scene.data).index,
): Key[] {
  return [...index.keys()].filter(({ repository }) => isMeant(repository))
}

const isGarbage = (repository: string) => repository === 'sweep/v7'

const collect: ProcessOperation = {
  name: 'collect',
  words: () => ['gc'],
  env: collecting,
  async prepare(scene) {
    await fill(scene, [1, 2])
    await scene.start()
    await pushImage(scene, 7, { tags: [] })
    await scene.stop()
    const stray = new Random(scene.options.seed, 'stray').bytes(500)
    const name = digestOf(stray).slice('sha256:'.length)
    writeFileSync(join(scene.data, 'blobs/sha256', name.slice(0, 2), name), stray)
  },
  foresee(scene, index) {
    for (const key of keysOf(scene, isGarbage, index)) scene.learnPossible(key, undefined)
  },
  conclude(scene) {
    for (const key of scene.model.expectations()) if (isGarbage(key.repository)) scene.learn(key, undefined)
  },
  async check(scene, isComplete) {
    if (!isComplete) return
    const files = readdirSync(join(scene.data, 'blobs/sha256')).flatMap((leaf) =>
      readdirSync(join(scene.data, 'blobs/sha256', leaf)),
    )
    if (files.length !== 4)
      scene.report(`I6 after the collection there are ${files.length} blobs in place of 4`)
  },
}

const backup: ProcessOperation = {
  name: 'backup',
  isDurable: true,
  words: (scene) => ['backup', join(scene.root, 'backup')],
  async prepare(scene) {
    await fill(scene, [1])
    await scene.command(['backup', join(scene.root, 'backup')])
    await fill(scene, [2])
    // What the second backup needs no more.
    await scene.start()
    const tag = { kind: 'tag', repository: 'sweep/v1', name: 'latest', value: undefined } as const
    await scene.change({ method: 'DELETE', path: '/v2/sweep/v1/manifests/latest' }, [202], [tag])
    await scene.stop()
  },
  async check(scene, isComplete) {
    // One that was interrupted is looked at where it lies.
    const restored = isComplete ? join(scene.root, 'restored') : join(scene.root, 'backup')
    if (isComplete) {
      const { code, said } = await scene.command(['restore', join(scene.root, 'backup')], {
        BOATHOUSE_DATA: restored,
      })
      if (code !== 0) scene.report(`I9 the backup cannot be restored: ${said}`)
    }
    const { violations, index } = checkFolder(withUploads(restored), { isUnfinished: !isComplete })
    scene.violations.push(...violations)
    const tags = [...index.keys()].filter(({ kind }) => kind === 'tag').map(({ repository }) => repository)
    if (tags.join() !== 'sweep/v2' && (isComplete || tags.join() !== 'sweep/v1')) {
      scene.report(`I1 the backup has the tags of ${tags.join() || 'nobody'}`)
    }
    rmSync(join(restored, isComplete ? '' : 'uploads'), { recursive: true })
  },
}

/** A folder that was restored gets its uploads at the first start. */
function withUploads(data: string): string {
  mkdirSync(join(data, 'uploads'), { recursive: true })
  return data
}

const restore: ProcessOperation = {
  name: 'restore',
  isFolderOpen: true,
  isOnce: true,
  words: (scene) => ['restore', join(scene.root, 'backup')],
  async prepare(scene) {
    await fill(scene, [1])
    await scene.command(['backup', join(scene.root, 'backup')])
    rmSync(scene.data, { recursive: true })
  },
  async check(scene, isComplete) {
    if (!isComplete) return
    const { index } = checkFolder(withUploads(scene.data))
    for (const key of index.keys()) scene.learn(key, index.value(key))
    if (index.value({ kind: 'tag', repository: 'sweep/v1', name: 'latest' }) === undefined) {
      scene.report('I1 the restore brought no tag back')
    }
  },
}

const isLater = (repository: string) => repository === 'sweep/v2'

const restoreIndex: ProcessOperation = {
  name: 'restore-index',
  isFolderOpen: true,
  words: () => ['restore', '--index', '--yes'],
  async prepare(scene) {
    await fill(scene, [1])
    await scene.start({ BOATHOUSE_SNAPSHOTS_KEEP: '24' })
    await until(() => snapshotsOf(scene).length > 0)
    await scene.stop()
    // A killed server leaves a log.
    await scene.start()
    await pushImage(scene, 2)
    scene.server?.killAll()
    await scene.gone()
  },
  foresee(scene, index) {
    for (const key of keysOf(scene, isLater, index)) scene.learnPossible(key, undefined)
  },
  conclude(scene) {
    for (const key of scene.model.expectations()) if (isLater(key.repository)) scene.learn(key, undefined)
  },
}

function snapshotsOf(scene: Scene): string[] {
  const folder = join(scene.data, 'snapshots')
  const names = existsSync(folder) ? readdirSync(folder) : []
  return names.filter((name) => name.endsWith('.db')).map((name) => join(folder, name))
}

async function until(isDone: () => boolean): Promise<boolean> {
  const deadline = performance.now() + 10_000
  while (!isDone()) {
    if (performance.now() > deadline) return false
    await delay(10)
  }
  return true
}

/** Each copy of the index is whole as soon as it has its name. */
async function checkSnapshots(scene: Scene): Promise<void> {
  for (const path of snapshotsOf(scene)) {
    try {
      const db = new Database(path, { readonly: true })
      const [line] = db.prepare<[], string>('PRAGMA integrity_check').pluck().all()
      const tags = db.prepare('SELECT count(*) FROM tag').pluck().get()
      db.close()
      if (line !== 'ok' || Number(tags) < 1) scene.report(`I7 ${path} is not whole: ${line}`)
    } catch (error) {
      scene.report(`I7 ${path} cannot be read: ${error}`)
    }
  }
}

const snapshot: ProcessOperation = {
  name: 'snapshot',
  env: { BOATHOUSE_SNAPSHOTS_KEEP: '1' },
  async prepare(scene) {
    await fill(scene, [1])
    // An older copy goes when the new one is there.
    mkdirSync(join(scene.data, 'snapshots'))
    cpSync(join(scene.data, 'boathouse.db'), join(scene.data, 'snapshots/index-2020-01-01T00-00-00-000Z.db'))
  },
  isDone: (scene) =>
    snapshotsOf(scene).some((path) => !path.includes('2020')) && snapshotsOf(scene).length === 1,
  check: checkSnapshots,
}

/** The schema that a migration begins at. */
const oldSchema = 2

const migration: ProcessOperation = {
  name: 'migration',
  async prepare(scene) {
    await fill(scene, [1, 2])
    const database = join(scene.data, 'boathouse.db')
    const old = join(scene.root, 'old.db')
    const db = new Database(old)
    migrate(db, oldSchema)
    db.prepare('ATTACH ? AS now').run(database)
    db.pragma('foreign_keys = OFF')
    for (const table of db
      .prepare<[], string>("SELECT name FROM main.sqlite_schema WHERE type = 'table'")
      .pluck()
      .all()) {
      const columns = db.prepare<[], string>(`SELECT name FROM pragma_table_info('${table}')`).pluck().all()
      const list = columns.map((column) => `"${column}"`).join()
      db.exec(
        `DELETE FROM main."${table}"; INSERT INTO main."${table}" (${list}) SELECT ${list} FROM now."${table}"`,
      )
    }
    db.exec('UPDATE main.total SET (blobs, blob_bytes) = (SELECT blobs, blob_bytes FROM now.total)')
    db.close()
    for (const name of readdirSync(dirname(database))) {
      if (name.startsWith('boathouse.db')) rmSync(join(dirname(database), name))
    }
    cpSync(old, database)
    rmSync(old)
  },
  check: checkSnapshots,
}

const firstStart: ProcessOperation = {
  name: 'first-start',
  isFolderOpen: true,
  async prepare(scene) {
    rmSync(scene.data, { recursive: true, force: true })
  },
}

/** What processes of their own do. */
export const processOperations: readonly ProcessOperation[] = [
  collect,
  migration,
  backup,
  restore,
  restoreIndex,
  snapshot,
  firstStart,
]
