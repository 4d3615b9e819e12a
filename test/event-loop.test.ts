import { spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  artifact,
  descriptor,
  everyReplyKeptTheRules,
  image,
  manifestOf,
  nextLink,
  OCI_MANIFEST,
  push,
  pushBlobs,
  putManifest,
  randomBlob,
  scratchDir,
  startServer,
} from './harness.js'

/*
 * Every test that starts a server watches its event loop (see loop-watch.ts): what a test here asserts beside that is
 * that the answers are right. Where the loop stood still, the file fails when it ends.
 */

t.test('S98: megabytes of annotations are listed page by page, and come back as they were', async (t) => {
  const server = await startServer(t)
  const base = image()
  await push(server, 'lists', 'base', base)
  const pushed = new Map<string, Record<string, string>>()
  for (let at = 0; at < 5; at++) {
    const annotations = Object.fromEntries(
      Array.from({ length: 60_000 }, (_, number) => [`${at}-${number}-é`, '"\\\n']),
    )
    const made = artifact({ subject: descriptor(base), artifactType: `a/${at % 2}`, annotations })
    await push(server, 'lists', made.digest, made)
    pushed.set(made.digest, annotations)
  }
  const listed: string[] = []
  let pages = 0
  for (let path: string | undefined = `/v2/lists/referrers/${base.digest}`; path !== undefined; pages++) {
    const reply = await server.request('GET', path)
    t.equal(reply.status, 200)
    t.ok(reply.body.length < 4.5e6, `${reply.body.length} bytes`)
    for (const { digest, annotations } of reply.json<{
      manifests: { digest: string; annotations: Record<string, string> }[]
    }>().manifests) {
      t.ok(JSON.stringify(annotations) === JSON.stringify(pushed.get(digest)), digest)
      listed.push(digest)
    }
    path = nextLink(reply)
  }
  t.ok(pages > 1, `${pages} pages`)
  t.strictSame(listed, [...pushed.keys()], 'each once, the oldest first')
  const none = await server.request('GET', `/v2/lists/referrers/${base.digest}?artifactType=a%2F9`)
  t.strictSame(none.json<{ manifests: unknown[] }>().manifests, [], 'none of another type')
})

t.test('S98: the largest manifests are read without keeping others waiting', async (t) => {
  const server = await startServer(t)
  const layer = randomBlob(10)
  await pushBlobs(server, 'large', layer)
  const config = descriptor(layer)
  const layers = Array.from({ length: 20_000 }, () => descriptor(layer))
  const shapes = [
    { layers },
    { layers: [], annotations: Object.fromEntries(layers.map((_, at) => [`${at}`.repeat(20), ''])) },
    {
      layers: [],
      subject: config,
      odd: Object.fromEntries(layers.map((_, at) => [`"\\u0041${at}`, [[at]]])),
    },
  ]
  for (const shape of shapes) {
    const made = manifestOf({ schemaVersion: 2, mediaType: OCI_MANIFEST, config, ...shape })
    t.equal((await putManifest(server, 'large', 'x', made)).status, 201)
    t.ok((await server.request('GET', '/v2/large/manifests/x')).body.equals(made.bytes))
  }
})

t.test('S98: the watch sees what stands still, and nothing else', async (t) => {
  const file = join(scratchDir(t), 'stalls')
  const work = `
    const used = () => { const { user, system } = process.cpuUsage(); return (user + system) / 1000 }
    const work = (ms) => { const end = used() + ms; while (used() < end) Math.random() }`
  const script = `
    import http from 'node:http'
    ${work}
    const rest = () => new Promise((resolve) => setImmediate(resolve))
    const server = http.createServer(async (request, response) => {
      if (request.url === '/once') work(300)
      if (request.url === '/promises') for (let at = 0; at < 30; at++) { work(10); await null }
      if (request.url === '/turns') for (let at = 0; at < 30; at++) { work(10); await rest() }
      response.end()
    }).listen(0, '127.0.0.1', async () => {
      const get = (path) => fetch('http://127.0.0.1:' + server.address().port + path).then((reply) => reply.text())
      await get('/')
      await new Promise((resolve) => setTimeout(resolve, 1000))
      for (const path of ['/turns', '/once', '/promises', '/turns']) {
        await get(path)
        await new Promise((resolve) => setTimeout(resolve, 500))
      }
      process.exit()
    })`
  const watch = new URL('./loop-watch.js', import.meta.url).href
  const child = spawn(process.execPath, [`--import=${watch}`, '--input-type=module', '-e', script], {
    env: { PATH: process.env.PATH ?? '', LOOP_WATCH: file },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  t.equal(await new Promise((resolve) => child.on('exit', resolve)), 0)
  const seen = existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : []
  const requests = seen.map((line) => (JSON.parse(line) as { request: string }).request)
  t.strictSame(requests, ['GET /once', 'GET /promises'])
})

everyReplyKeptTheRules(t)
