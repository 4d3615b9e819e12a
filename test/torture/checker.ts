import { checkBlobFiles, checkUploads, HashedFiles } from './check-files.js'
import { checkDatabase, checkIndex, type MayBeMissing } from './check-index.js'
import type { Referrers } from './check-served.js'
import type { Expectation } from './model.js'
import type { StoredSession } from './sessions.js'
import { emptyIndex, readIndex, type StoredIndex, withIndexCopy } from './stored.js'

export { checkServed, type Referrers, type ServedOptions } from './check-served.js'
export { HashedFiles, type StoredIndex }

/*
 * The invariants that hold in every data folder, whatever happened to its server (I9, that the server starts, is
 * the caller's to see):
 *
 *   I1   what was acknowledged is there, hash for hash        I6   every row has its bytes; no bytes without a reason
 *   I2   no tag without its manifest, no manifest without     I7   the index is sound for SQLite
 *        its parts                                            I8   a repository shows the blobs that it links alone
 *   I3   what lies under a digest has that digest             I10  the sizes that are told are the sizes on disk
 *   I4   what was not acknowledged is whole or absent
 *   I5   what was deleted stays deleted
 *
 * Alone, the checker proves I2, I3, I6, I7 and I10, and that HTTP shows what the folder holds. Who knows what
 * was acknowledged (see model.ts) asks it for the index, and judges I1, I4, I5 and I8 by that.
 */

/** What a suite knows of the folder. */
export interface FolderOptions {
  /** Whether the server ended in order: then nothing may be half done. Default: false, it was killed. */
  readonly isCleanStop?: boolean
  /** Whether a blob's file may lie there without a row. Default: every one may. */
  readonly mayBeOrphan?: (digest: string) => boolean
  /** Whether a part of a manifest may be missing, because it was deleted or never pushed. Default: none may. */
  readonly mayBeMissing?: MayBeMissing
  /** Whether files that get their names when they are whole, `.new`, may lie there. Default: none may. */
  readonly isUnfinished?: boolean
  /** Files that are known already. Default: every file is read. */
  readonly hashed?: HashedFiles
}

/** What a look at the folder of a stopped server showed. */
export interface FolderCheck {
  /** A sentence for each violation. */
  readonly violations: readonly string[]
  readonly index: StoredIndex
  readonly sessions: readonly StoredSession[]
}

/**
 * Checks the data folder of a stopped server and leaves it as it is. An index that cannot be read at all is a
 * violation, and counts as empty.
 */
export function checkFolder(data: string, options: FolderOptions = {}): FolderCheck {
  const {
    mayBeOrphan = () => true,
    mayBeMissing = () => false,
    hashed = new HashedFiles(),
    isUnfinished = false,
  } = options
  let found: { readonly violations: readonly string[]; readonly index: StoredIndex }
  try {
    found = withIndexCopy(data, (db) => ({ violations: [...checkDatabase(db)], index: readIndex(db) }))
  } catch (error) {
    const reason = error instanceof Error ? error.message : error
    return { violations: [`I7 the index cannot be read: ${reason}`], index: emptyIndex, sessions: [] }
  }
  const { index } = found
  const uploads = checkUploads(data, index, options.isCleanStop ?? false)
  return {
    index,
    sessions: uploads.sessions,
    violations: [
      ...found.violations,
      ...checkIndex(index, mayBeMissing),
      ...checkBlobFiles(data, index, { hashed, mayBeOrphan, isUnfinished }),
      ...uploads.violations,
    ],
  }
}

/** What a server must show over HTTP when its folder holds this. */
export function expectationsOf(index: StoredIndex): Expectation[] {
  return [...index.keys()].map((key) => ({ ...key, legal: new Set([index.value(key)]) }))
}

/** The lists of referrers that go with an index. */
export function referrersOf(index: StoredIndex): Referrers[] {
  const lists = new Map<string, Referrers & { digests: Set<string> }>()
  for (const [repository, { manifests }] of index.repositories) {
    for (const { digest, subject } of manifests.values()) {
      if (subject === undefined) continue
      const key = `${repository}@${subject}`
      const list = lists.get(key) ?? { repository, subject, digests: new Set() }
      list.digests.add(digest)
      lists.set(key, list)
    }
  }
  return [...lists.values()]
}
