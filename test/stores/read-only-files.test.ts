import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import t, { type Test } from 'tap'
import { openDatabase } from '../../storage/sqlite-connection.js'
import { lockFile } from '../../storage/sqlite-lock.js'
import { prepareSqlite } from '../../storage/sqlite-metadata-store.js'

/*
 * SQLite opens a file that it may not write for reading, without a word. Root may write everything: what is tried here
 * is tried as nobody.
 */

const nobody = 65534
const isRoot = process.getuid?.() === 0

/** A folder that everybody may use. */
function openFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'boathouse-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  chmodSync(folder, 0o777)
  return folder
}

/** Does it as somebody whom the modes of files hold back. */
function asNobody<T>(what: () => T): T {
  if (!isRoot) return what()
  process.seteuid?.(nobody)
  try {
    return what()
  } finally {
    process.seteuid?.(0)
  }
}

t.before(() => void new Database(':memory:').close()) // the driver is loaded before anything is forbidden

t.test('R65: an exclusive lock on a file that cannot be written is refused, not shared', async (t) => {
  const path = join(openFolder(t), 'server.lock')
  writeFileSync(path, '')
  chmodSync(path, 0o444)
  t.throws(() => asNobody(() => lockFile(path, 'exclusive', 0)), { code: 'SQLITE_READONLY' })
  chmodSync(path, 0o666)
  const lock = asNobody(() => lockFile(path, 'exclusive', 0))
  lock.release()
})

t.test('R61: an index that cannot be written has no writer, from its first moment on', async (t) => {
  const path = join(openFolder(t), 'boathouse.db')
  prepareSqlite(path)
  chmodSync(path, 0o666)
  asNobody(() => openDatabase(path, 'writer')).close()
  chmodSync(path, 0o444)
  t.throws(() => asNobody(() => openDatabase(path, 'writer')), { code: 'SQLITE_READONLY' })
})
