import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import type { Database } from 'better-sqlite3'
import { indexErrorCode } from './file-room.js'
import { openDatabase } from './sqlite-connection.js'
import { type Operations, prepareOperations, Refused, volatileOperations } from './sqlite-operations.js'

/** One operation on its way to the writer thread. */
export interface WriteRequest {
  readonly operation: keyof Operations
  readonly args: readonly unknown[]
}

/** What became of one operation. */
export type WriteReply =
  | { readonly ok: true; readonly value: unknown }
  | { readonly ok: false; readonly code: string; readonly message: string }

/*
 * The writer thread of one process: it commits what the process writes, so that no commit ever blocks the
 * event loop. Operations that wait together are committed together: one sync of the log for all of them.
 */
const port = parentPort
if (port !== null) {
  try {
    serve(port, openDatabase(String(workerData), 'writer'))
    port.postMessage('ready')
  } catch (error) {
    port.postMessage(failure(error)) // a SQLite error does not survive the way as it is
    port.close()
  }
}

function serve(port: MessagePort, db: Database): void {
  const operations = prepareOperations(db)
  const begin = db.prepare('BEGIN IMMEDIATE')
  const commit = db.prepare('COMMIT')
  const savepoint = db.prepare('SAVEPOINT operation')
  const release = db.prepare('RELEASE operation')
  const undo = db.prepare('ROLLBACK TO operation')
  let synchronous = true

  function setSynchronous(wanted: boolean): void {
    if (wanted === synchronous) return
    db.pragma(`synchronous = ${wanted ? 'FULL' : 'NORMAL'}`)
    synchronous = wanted
  }

  function runOne(request: WriteRequest): WriteReply {
    savepoint.run()
    try {
      const run = operations[request.operation] as (...args: readonly unknown[]) => unknown
      const value = run(...request.args)
      release.run()
      return { ok: true, value }
    } catch (error) {
      if (!db.inTransaction) throw error // SQLite gave the whole transaction up (disk full, I/O error)
      undo.run()
      release.run()
      return error instanceof Refused ? { ok: true, value: error.value } : failure(error)
    }
  }

  function runBatch(requests: readonly WriteRequest[]): WriteReply[] {
    try {
      setSynchronous(requests.some((request) => !volatileOperations.has(request.operation)))
      begin.run()
      const replies = requests.map(runOne)
      commit.run()
      return replies
    } catch (error) {
      if (db.inTransaction) db.exec('ROLLBACK')
      return requests.map(() => failure(error))
    }
  }

  port.on('message', (requests: readonly WriteRequest[] | 'close') => {
    if (requests === 'close') {
      db.close()
      port.close()
      return
    }
    port.postMessage(runBatch(requests))
  })
}

function failure(error: unknown): WriteReply {
  return {
    ok: false,
    code: indexErrorCode(error, String(workerData)),
    message: error instanceof Error ? error.message : String(error),
  }
}
