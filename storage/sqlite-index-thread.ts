import { parentPort, workerData } from 'node:worker_threads'
import { indexErrorCode } from './file-room.js'
import { copyIndex, findIndexFaults } from './sqlite-index.js'

/** Look at every page of an index, or copy it and look at the copy. */
export type IndexTask =
  | { readonly task: 'check'; readonly how: 'quick' | 'thorough'; readonly path: string }
  | { readonly task: 'copy'; readonly path: string; readonly target: string }

/** How it went. */
export type IndexTaskReply =
  | { readonly ok: true; readonly faults: string[] }
  | { readonly ok: false; readonly code: string; readonly message: string }

if (parentPort !== null) parentPort.postMessage(await reply(workerData as IndexTask))

async function reply(task: IndexTask): Promise<IndexTaskReply> {
  try {
    const faults =
      task.task === 'check' ? findIndexFaults(task.path, task.how) : await copyIndex(task.path, task.target)
    return { ok: true, faults }
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    const written = task.task === 'copy' ? task.target : task.path
    return { ok: false, code: indexErrorCode(error, written), message }
  }
}
