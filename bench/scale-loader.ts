import { writeFileSync } from 'node:fs'
import type { Digest } from '../src/oci/digest.js'
import type { RepositoryName, Tag } from '../src/oci/reference.js'
import { dataPaths, takeDataFolder } from '../storage/data-folder.js'
import { Layout } from '../storage/fs-layout.js'
import { openDatabase } from '../storage/sqlite-connection.js'
import { type Operations, prepareOperations } from '../storage/sqlite-operations.js'
import { MANIFEST_TYPE } from './image.js'
import { type SeedBlob, type SeedManifest, seedBlob, seedRepositories } from './scale.js'

/** Repositories, or blobs, that are recorded in one transaction. */
const batchSize = 200

type Record = (operations: Operations, now: number) => void

/**
 * Records much in a data folder on which no server need run, by the same operations as the server's writer thread, but
 * many in one transaction and without syncing any.
 */
function recordAll(folder: string, records: Iterable<Record>, now: number): void {
  const db = openDatabase(dataPaths(folder).database, 'writer')
  try {
    db.pragma('synchronous = OFF')
    const operations = prepareOperations(db)
    const some: Record[] = []
    const flush = db.transaction(() => {
      for (const record of some.splice(0)) record(operations, now)
    })
    for (const record of records) if (some.push(record) === batchSize) flush.immediate()
    flush.immediate()
  } finally {
    db.close()
  }
}

function addBlob(operations: Operations, repository: string, blob: SeedBlob, now: number): void {
  const { digest, bytes } = blob
  operations.add(repository as RepositoryName, { digest: digest as Digest, size: bytes.length }, now)
}

function putManifest(operations: Operations, repository: string, manifest: SeedManifest, now: number): void {
  const { digest, bytes, children, tags } = manifest
  const { outcome } = operations.putManifest({
    repository: repository as RepositoryName,
    digest: digest as Digest,
    mediaType: MANIFEST_TYPE,
    bytes,
    children: children.map((child) => ({
      digest: child.digest as Digest,
      size: child.bytes.length,
      role: 'blob',
      required: true,
    })),
    subject: undefined,
    artifactType: undefined,
    annotations: undefined,
    tags: tags as readonly string[] as readonly Tag[],
    sparse: false,
    immutable: [],
    condition: undefined,
    now,
  })
  if (outcome !== 'stored') throw new Error(`a manifest was not stored: ${outcome}`)
}

/** Fills a new data folder with the large registry of `scale.ts`, blobs' files included. */
export async function loadLargeRegistry(folder: string): Promise<void> {
  ;(await takeDataFolder(folder)).release()
  const layout = new Layout(folder)
  function* records(): Generator<Record> {
    for (const { name, blobs, manifests } of seedRepositories()) {
      for (const { digest, bytes } of blobs) writeFileSync(layout.blob(digest as Digest), bytes)
      yield (operations, now) => {
        for (const blob of blobs) addBlob(operations, name, blob, now)
        for (const manifest of manifests) putManifest(operations, name, manifest, now)
      }
    }
  }
  recordAll(folder, records(), Date.now())
}

const GARBAGE = 'bench/garbage'

/** Makes a data folder with the files of blobs that {@link recordGarbage} will record. */
export async function writeGarbage(folder: string, count: number): Promise<void> {
  ;(await takeDataFolder(folder)).release()
  const layout = new Layout(folder)
  for (let n = 0; n < count; n += 1) {
    const { digest, bytes } = seedBlob(GARBAGE, n)
    writeFileSync(layout.blob(digest as Digest), bytes)
  }
}

/** Records blobs that a repository holds and no manifest names, as of so many milliseconds ago. */
export function recordGarbage(folder: string, count: number, age: number): void {
  function* records(): Generator<Record> {
    for (let n = 0; n < count; n += 1) {
      yield (operations, now) => addBlob(operations, GARBAGE, seedBlob(GARBAGE, n), now)
    }
  }
  recordAll(folder, records(), Date.now() - age)
}

/** The folder's database, for whoever watches its lock. */
export function databaseOf(folder: string): string {
  return dataPaths(folder).database
}
