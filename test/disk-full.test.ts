import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  eventually,
  everyReplyKeptTheRules,
  filesBelow,
  image,
  newRepository,
  openUpload,
  push,
  putManifest,
  RawConnection,
  type Reply,
  randomBlob,
  type Server,
  scratchDir,
  startServer,
} from './harness.js'

const folder = scratchDir(t)
const mounted: string[] = []
t.teardown(() => {
  for (const path of mounted) execFileSync('umount', ['-l', path])
})

/** A small filesystem of its own; undefined where this user may not make one. */
function mountSmall(options: string): string | undefined {
  const path = join(folder, `disk-${mounted.length}`)
  mkdirSync(path, { recursive: true })
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'boathouse-test', path], { stdio: 'ignore' })
  } catch {
    return undefined
  }
  mounted.push(path)
  return path
}

const skip = mountSmall('size=1m') === undefined ? 'needs the right to mount' : false

/** A small filesystem of its own. */
function smallDisk(options: string): string {
  const path = mountSmall(options)
  if (path === undefined) throw new Error('the second disk cannot be mounted')
  return path
}

/** Leaves so many free bytes; they may be a page more. */
function fillUp(disk: string, left: number): string {
  const file = join(disk, 'filler')
  const piece = Buffer.alloc(64 * 1024)
  for (;;) {
    const { bavail, bsize } = statfsSync(disk)
    const rest = bavail * bsize - left
    if (rest <= 0) return file
    try {
      appendFileSync(file, piece.subarray(0, Math.min(piece.length, rest)))
    } catch {
      return file
    }
  }
}

/** Asserts the answer to a push that finds the disk full. */
function isFull(t: Test, reply: Reply, what = '') {
  t.equal(reply.status, 507, `${what} ${reply.text}`)
  t.equal(reply.code, 'STORAGE_FULL')
  t.match(reply.errors[0]?.message, /^no space left on device: the disk .* push again$/)
}

t.test('R51: a full disk', { skip }, async (t) => {
  const disk = smallDisk('size=24m')
  const config = { disk: { floor: '0B', reserve: '0B' } }
  const server: Server = await startServer(t, { data: join(disk, 'data'), config })
  const repository = newRepository('full')
  const manifest = image({ layers: [randomBlob(1_000_000)] })
  await push(server, repository, 'x', manifest)
  const big = randomBlob(40_000_000)

  await t.test('a push is answered with 507 and a sentence, in every form', async (t) => {
    const uploads = `/v2/${repository}/blobs/uploads/`
    const post = await server.request('POST', `${uploads}?digest=${big.digest}`, {
      body: big.bytes,
      fresh: true,
      unchecked: true,
    })
    isFull(t, post)
    const location = await openUpload(server, repository)
    const patched = await server.request('PATCH', location, {
      body: big.bytes,
      fresh: true,
      chunked: true,
      unchecked: true,
    })
    isFull(t, patched)
    t.equal((await server.request('DELETE', location)).status, 204)
  })

  await t.test(
    'what was there is served, the bytes of refused pushes are gone, small pushes go on',
    async (t) => {
      const pulled = await server.request('GET', `/v2/${repository}/manifests/x`)
      t.ok(pulled.body.equals(manifest.bytes))
      const layer = manifest.parts[1]
      const read = await server.request('GET', `/v2/${repository}/blobs/${layer?.digest}`)
      t.ok(layer && read.body.equals(layer.bytes))
      await eventually('no bytes stay', () => filesBelow(join(server.data, 'uploads')).length === 0)
      await push(server, repository, 'small', image())
    },
  )

  await t.test('when there is room again, everything goes on without a restart', async (t) => {
    execFileSync('mount', ['-o', 'remount,size=200m', disk])
    const path = `/v2/${repository}/blobs/uploads/?digest=${big.digest}`
    t.equal((await server.request('POST', path, { body: big.bytes })).status, 201)
    await push(server, repository, 'y', image())
    t.same(await server.stop(), { code: 0, signal: null })
  })
})

t.test('R51: below disk.floor pushes are refused, all else goes on', { skip }, async (t) => {
  const disk = smallDisk('size=64m')
  const config = { disk: { floor: '16MiB', reserve: '0B' } }
  const server = await startServer(t, { data: join(disk, 'data'), config })
  const repository = newRepository('floor')
  const uploads = `/v2/${repository}/blobs/uploads/`
  const manifest = image({ layers: [randomBlob(1_000_000)] })
  await push(server, repository, 'x', manifest)
  const layer = manifest.parts[1]?.digest
  const open = await openUpload(server, repository)

  await t.test('a body that says how long it is, and is too long, is not even asked for', async (t) => {
    const connection = await RawConnection.open(server)
    const digest = `sha256:${'0'.repeat(64)}`
    const head = `POST ${uploads}?digest=${digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n`
    await connection.send(`${head}Expect: 100-continue\r\n\r\n`)
    const reply = await connection.reply()
    t.equal(reply.status, 507, 'and not 100')
    t.match(
      reply.head.split('\r\n')[0],
      /^HTTP\/1.1 507 no space left on device: .* disk\.floor keeps 16 MiB free; make room/,
    )
    connection.close()
  })

  await t.test('a long body is cut off when the floor is reached, and its bytes go', async (t) => {
    // Piece by piece as they arrive on the disk: the disk is looked at beside the body, some 20 times a second, and
    // the disk's own end must be far off when the floor is passed.
    const free = () => statfsSync(disk).bavail * statfsSync(disk).bsize
    const before = free()
    const piece = Buffer.alloc(128 * 1024)
    const held = 4 * 1024 ** 2 // what the server may have in memory
    const connection = await RawConnection.open(server)
    await connection.request(`PATCH ${open}`, ['Transfer-Encoding: chunked'])
    let sent = 0
    while (connection.receivedBytes === 0 && free() > 1024 ** 2) {
      await connection.send(Buffer.concat([Buffer.from('20000\r\n'), piece, Buffer.from('\r\n')]))
      sent += piece.length
      const landed = sent - held
      await eventually(
        `${landed} bytes on the disk`,
        () => connection.receivedBytes > 0 || before - free() >= landed,
      )
    }
    const reply = await connection.reply()
    t.match(reply.head, /^HTTP\/1.1 507 no space left on device: .* disk\.floor keeps 16 MiB free; make room/)
    connection.close()
    t.ok(sent > before - 17 * 1024 ** 2, `not before the floor: ${sent} of ${before} bytes`)
    await eventually('they are gone', () => free() > 40 * 1024 ** 2)
    t.equal((await server.request('HEAD', open)).header('range'), '0-0', 'the upload is where it was')
  })

  const filler = fillUp(disk, 15 * 1024 ** 2)
  await t.test('each step of a push is refused', async (t) => {
    await eventually('the first refusal', async () => (await server.request('POST', uploads)).status === 507)
    isFull(t, await server.request('POST', uploads), 'start')
    isFull(t, await server.request('PATCH', open, { body: 'x' }), 'chunk')
    isFull(t, await server.request('PUT', `${open}?digest=${layer}`, { body: 'x' }), 'end')
    const other = `/v2/${newRepository('other')}/blobs/uploads/`
    isFull(t, await server.request('POST', `${other}?mount=${layer}&from=${repository}`), 'mount')
    isFull(t, await putManifest(server, repository, 'again', manifest), 'manifest')
    await eventually('a word in the log', () =>
      server.logs().some(({ msg }) => /less free space than disk.floor/.test(String(msg))),
    )
  })

  await t.test('pulls, deletes and collection go on, and the server is ready', async (t) => {
    t.ok((await server.request('GET', `/v2/${repository}/manifests/x`)).body.equals(manifest.bytes))
    t.equal((await server.request('GET', `/v2/${repository}/blobs/${layer}`)).status, 200)
    t.equal((await server.request('GET', '/readyz')).status, 200)
    t.equal((await server.request('DELETE', `/v2/${repository}/manifests/x`)).status, 202)
    t.match((await server.request('GET', '/metrics')).text, /^boathouse_disk_free_bytes 1\d{7}$/m)
  })

  await t.test('a second after there is room again pushes go on', async (t) => {
    rmSync(filler)
    await eventually('a push', async () => (await server.request('POST', uploads)).status === 202, 1000)
    await push(server, repository, 'y', image())
    t.same(await server.stop(), { code: 0, signal: null })
  })
})

t.test('R51: a disk without free files refuses pushes, and all else goes on', { skip }, async (t) => {
  const disk = smallDisk('size=64m,nr_inodes=1000')
  const config = { disk: { floor: '0B', reserve: '0B' } }
  const server = await startServer(t, { data: join(disk, 'data'), config })
  const repository = newRepository('files')
  const manifest = image()
  await push(server, repository, 'x', manifest)
  mkdirSync(join(disk, 'files'))
  for (let count = 0; statfsSync(disk).ffree > 5; count++) writeFileSync(join(disk, 'files', `${count}`), '')
  const start = () => server.request('POST', `/v2/${repository}/blobs/uploads/`)
  const refused = await eventually('a refusal', async () => {
    const reply = await start()
    return reply.status === 507 && reply
  })
  isFull(t, refused)
  t.match(refused.text, /room for more files/)
  t.equal((await server.request('GET', `/v2/${repository}/manifests/x`)).status, 200)
  t.equal((await server.request('DELETE', `/v2/${repository}/manifests/x`)).status, 202)
  rmSync(join(disk, 'files'), { recursive: true })
  await eventually('a push', async () => (await start()).status === 202, 1000)
})

t.test('R51: the reserve is made, given up on a full disk, and made again', { skip }, async (t) => {
  const disk = smallDisk('size=64m')
  const data = join(disk, 'data')
  const config = {
    disk: { floor: '0B', reserve: '8MiB' },
    gc: { interval: '100ms', grace: '3s' },
    snapshots: { keep: 0 },
  }
  const server = await startServer(t, { data, config })
  const reserve = join(data, 'reserve')
  const size = () => statSync(reserve, { throwIfNoEntry: false })?.size ?? 0
  await eventually('the reserve', () => size() === 8 * 1024 ** 2)
  const repository = newRepository('reserve')
  const count = 40
  for (let tag = 0; tag < count; tag++) {
    await push(server, repository, `t${tag}`, image({ layers: [randomBlob(200_000)] }))
  }
  const filler = fillUp(disk, 0)

  await t.test('every tag and manifest can be deleted, and their bytes are collected', async (t) => {
    for (let tag = 0; tag < count; tag++) {
      const head = await server.request('HEAD', `/v2/${repository}/manifests/t${tag}`)
      const path = `/v2/${repository}/manifests/${head.header('docker-content-digest')}`
      const deleted = await server.request('DELETE', path)
      t.equal(deleted.status, 202, deleted.text)
    }
    const left = () => filesBelow(join(data, 'blobs')).length
    await eventually('all blobs are gone', () => left() === 0, 60_000)
  })

  await t.test('a server that was killed starts on a disk without a free byte', async (t) => {
    rmSync(filler)
    await eventually('the reserve is whole', () => size() === 8 * 1024 ** 2)
    fillUp(disk, 0)
    await server.kill()
    fillUp(disk, 0)
    const next = await startServer(t, { data, config })
    t.equal((await next.request('GET', '/v2/')).status, 200)
    rmSync(filler)
    await eventually('the reserve is back', () => size() === 8 * 1024 ** 2)
    await push(next, repository, 'again', image())
    t.same(await next.stop(), { code: 0, signal: null })
  })

  await t.test('a reserve of 0B is none', async (t) => {
    const next = await startServer(t, { data, config: { ...config, disk: { reserve: '0B' } } })
    await eventually('it goes', () => !existsSync(reserve))
    t.ok(readdirSync(data).includes('boathouse.db'))
    await next.stop()
  })
})

everyReplyKeptTheRules(t)
