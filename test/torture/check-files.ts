import { createHash } from 'node:crypto'
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { digestOf } from './content.js'
import type { StoredSession } from './sessions.js'
import type { StoredIndex } from './stored.js'

const hexLengths = { sha256: 64, sha512: 128 } as const

/** Files whose digest was found right, so that the next check reads only what has changed. */
export class HashedFiles {
  readonly #known = new Map<string, string>()

  /** Whether the file's bytes have the digest that its path says. */
  isRight(path: string, digest: string): boolean {
    const { ino, size, mtimeNs, ctimeNs } = statSync(path, { bigint: true })
    const state = `${ino} ${size} ${mtimeNs} ${ctimeNs}`
    if (this.#known.get(path) === state) return true
    if (hashFile(path, digest.split(':', 1)[0] ?? '') !== digest) return false
    this.#known.set(path, state)
    return true
  }

  /** Makes the next check read everything. */
  clear(): void {
    this.#known.clear()
  }
}

function hashFile(path: string, algorithm: string): string {
  const hash = createHash(algorithm)
  const buffer = Buffer.allocUnsafe(1024 * 1024)
  const file = openSync(path, 'r')
  try {
    for (let count = readSync(file, buffer); count > 0; count = readSync(file, buffer)) {
      hash.update(buffer.subarray(0, count))
    }
  } finally {
    closeSync(file)
  }
  return `${algorithm}:${hash.digest('hex')}`
}

/**
 * I3, I6: whether every file below a digest has that digest, every blob row its file of that size, and every
 * file a row, or an excuse.
 */
export function* checkBlobFiles(
  data: string,
  index: StoredIndex,
  options: {
    readonly hashed: HashedFiles
    readonly mayBeOrphan: (digest: string) => boolean
    readonly isUnfinished?: boolean
  },
): Generator<string> {
  const files = new Map<string, number>()
  for (const algorithm of ['sha256', 'sha512'] as const) {
    const top = join(data, 'blobs', algorithm)
    for (const leaf of readdirSync(top)) {
      for (const name of readdirSync(join(top, leaf))) {
        if (options.isUnfinished === true && name.endsWith('.new')) continue
        const path = join(top, leaf, name)
        const digest = `${algorithm}:${name}`
        files.set(digest, statSync(path).size)
        if (name.length !== hexLengths[algorithm] || !/^[0-9a-f]+$/.test(name) || !name.startsWith(leaf)) {
          yield `I3 ${path} is no place for a blob`
        } else if (!options.hashed.isRight(path, digest)) {
          yield `I3 ${path} has other bytes than its name says`
        }
        if (!index.blobs.has(digest) && !options.mayBeOrphan(digest)) {
          yield `I6 ${path} has no row, and every upload of it was acknowledged`
        }
      }
    }
  }
  for (const [digest, size] of index.blobs) {
    const found = files.get(digest)
    if (found === undefined) {
      if (!index.condemned.has(digest)) yield `I6 blob ${digest} has a row, but no file`
    } else if (found !== size) yield `I6 blob ${digest} has ${found} bytes where its row says ${size}`
  }
}

/** Uploads with their files, and what is wrong with them. */
export function checkUploads(
  data: string,
  index: StoredIndex,
  isCleanStop: boolean,
): { violations: string[]; sessions: StoredSession[] } {
  const violations: string[] = []
  const names = new Set(readdirSync(join(data, 'uploads')))
  const sessions = index.uploads.map(({ id, repository, offset, digest, holder }) => {
    const bytes = names.delete(id) ? readFileSync(join(data, 'uploads', id)) : undefined
    if (bytes !== undefined && bytes.length < offset) {
      violations.push(`I6 upload ${id} has ${bytes.length} bytes where its row says ${offset}`)
    } else if (bytes !== undefined && digest !== null) {
      const actual = digestOf(bytes.subarray(0, offset), digest.split(':', 1)[0])
      if (actual !== digest) violations.push(`I3 upload ${id} has other bytes than its row's digest says`)
    }
    if (isCleanStop && holder !== null) violations.push(`I9 upload ${id} is still held by ${holder}`)
    return { id, repository, offset, bytes }
  })
  if (isCleanStop) {
    for (const name of names) violations.push(`I6 uploads/${name} has no row`)
  }
  return { violations, sessions }
}
