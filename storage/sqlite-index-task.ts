import { Worker } from 'node:worker_threads'
import { toStorageError } from './errors.js'
import type { IndexTask, IndexTaskReply } from './sqlite-index-thread.js'

/**
 * Works on a whole index in a thread of its own, which ends with it: nothing else waits, be the index large.
 * @returns what is wrong with the index, or with its copy: nothing, when all is well
 * @throws RegistryError UNAVAILABLE or STORAGE_FULL
 */
export function runIndexTask(task: IndexTask): Promise<string[]> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL('./sqlite-index-thread.js', import.meta.url), { workerData: task })
    worker.once('message', (reply: IndexTaskReply) => {
      if (reply.ok) resolve(reply.faults)
      else reject(toStorageError(Object.assign(new Error(reply.message), { code: reply.code })))
    })
    worker.once('error', (error) => reject(toStorageError(error)))
    worker.once('exit', () => reject(toStorageError(new Error('the thread ended without an answer'))))
  })
}
