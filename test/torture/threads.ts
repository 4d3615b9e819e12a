import { appendFileSync, existsSync, readlinkSync } from 'node:fs'
import { readlink } from 'node:fs/promises'
import { basename } from 'node:path'
import { isMainThread, threadId } from 'node:worker_threads'

/*
 * Preloaded into each thread of a traced program (`node --import`): tells the tracer which thread of the system is
 * which, and lets the one that the tracer wants wait until it is watched. It does nothing in a program that is not
 * traced.
 *
 *   main                  the main thread
 *   pool                  the one thread for work on files (UV_THREADPOOL_SIZE=1)
 *   sqlite-writer.js:2    a worker thread, by its script and its number in the process
 */

const list = process.env.TORTURE_THREADS
const wanted = process.env.TORTURE_WAIT
const pause = new Int32Array(new SharedArrayBuffer(4))

function tell(role: string, link: string): void {
  if (list === undefined) return
  appendFileSync(list, `${role} ${basename(link)}\n`)
  while (role === wanted && !existsSync(`${list}.go`)) Atomics.wait(pause, 0, 0, 2)
}

if (list !== undefined) {
  const own = readlinkSync('/proc/thread-self')
  if (isMainThread) {
    tell('pool', await readlink('/proc/thread-self'))
    tell('main', own)
  } else tell(`${basename(process.argv[1] ?? '')}:${threadId}`, own)
}
