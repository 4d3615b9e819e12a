import { createHook, executionAsyncResource } from 'node:async_hooks'
import { subscribe } from 'node:diagnostics_channel'
import { appendFileSync, openSync, readSync } from 'node:fs'
import type { IncomingMessage } from 'node:http'
import { PerformanceObserver } from 'node:perf_hooks'
import { isMainThread } from 'node:worker_threads'

/*
 * Loaded into each server that a test starts (node --import, see test/harness.ts), and no part of the product. Writes a
 * line to the file LOOP_WATCH for each piece of synchronous work that keeps the event loop for too long: one callback
 * with all the promises and ticks behind it.
 *
 * What counts is the time for which the processor worked for this thread. So nothing counts while a busy machine lets
 * the thread wait, and nothing does while it waits for requests. Garbage collections are taken off, and the watch begins
 * with the first request: modules are loaded and compiled before it.
 */

/** Milliseconds of the processor that one piece of work may take. */
const longest = 50

/** Milliseconds between two looks at most while pieces of work follow each other: what a look may be wrong by. */
const lookEvery = 1

/**
 * Share of the time that a piece of work has of a processor at least, be the machine as busy as it may. What has less is
 * no piece: the loop waited for requests, and what the system did for it then added up.
 */
const leastShare = 0.005

/** Milliseconds after which it is known what garbage was collected meanwhile. */
const settling = 200

const file = process.env.LOOP_WATCH
if (isMainThread && file !== undefined) watch(file)

function watch(path: string): void {
  const readClock = openClock()
  if (readClock === undefined) return
  const collections: { start: number; end: number }[] = []
  new PerformanceObserver((list) => {
    for (const { startTime, duration } of list.getEntries()) {
      collections.push({ start: startTime, end: startTime + duration })
    }
    collections.splice(0, collections.length - 1000)
  }).observe({ entryTypes: ['gc'] })

  let lastRequest = ''
  let isWatching = false
  let begin = { wall: 0, cpu: 0 }

  /** Ends the piece of work before this moment, and begins another one. */
  function look(clock: () => number): void {
    const wall = performance.now()
    if (wall - begin.wall < lookEvery) return
    const now = { wall, cpu: clock() }
    if (now.cpu - begin.cpu > longest) note(begin, now, lastRequest)
    begin = now
  }

  function note(from: typeof begin, to: typeof begin, request: string): void {
    setTimeout(() => {
      const overlaps = collections.map(
        ({ start, end }) => Math.min(end, to.wall) - Math.max(start, from.wall),
      )
      const garbage = overlaps.reduce((sum, overlap) => sum + Math.max(0, overlap), 0)
      const worked = to.cpu - from.cpu - garbage
      if (worked <= longest || worked < (to.wall - from.wall) * leastShare) return
      const line = { ms: Math.round(worked), waited: Math.round(to.wall - from.wall), request }
      appendFileSync(path, `${JSON.stringify(line)}\n`)
    }, settling).unref()
  }

  // Callbacks inside others (a parser's in that of its connection) only divide what comes before the work from it.
  const hook = createHook({
    before() {
      if (!isPart(executionAsyncResource())) look(readClock)
    },
  })

  subscribe('http.server.request.start', (message) => {
    const { request } = message as { request: IncomingMessage }
    lastRequest = `${request.method} ${request.url?.slice(0, 200)}`
    if (isWatching) return
    isWatching = true
    setTimeout(() => {
      begin = { wall: performance.now(), cpu: readClock() }
      hook.enable()
    }, settling).unref()
  })
}

/** Promises and ticks run on behind the callback that they come of, before anybody else gets a turn. */
function isPart(resource: object): boolean {
  return resource instanceof Promise || ('callback' in resource && 'args' in resource)
}

/** The milliseconds for which the processor has worked for this thread; undefined where the system does not tell. */
function openClock(): (() => number) | undefined {
  try {
    const descriptor = openSync(`/proc/self/task/${process.pid}/schedstat`, 'r')
    const buffer = Buffer.alloc(100)
    return () => {
      const length = readSync(descriptor, buffer, 0, buffer.length, 0)
      return Number(buffer.toString('latin1', 0, length).split(' ', 1)[0]) / 1e6
    }
  } catch {
    return undefined
  }
}
