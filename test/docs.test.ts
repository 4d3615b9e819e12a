import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import Database from 'better-sqlite3'
import t from 'tap'
import { mirrorSettings, settings } from '../config/schema.js'
import { errorTable } from '../src/oci/errors.js'
import { scratchDir, startServer } from './harness.js'

/** The project's folder: the tests run two levels below it. */
const root = fileURLToPath(new URL('../../', import.meta.url))
const read = (file: string) => readFileSync(join(root, file), 'utf8')

const pages = [
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'docs/ARCHITECTURE.md',
  'docs/FAULTS.md',
  'docs/OPERATIONS.md',
  'storage/README.md',
  ...readdirSync(join(root, 'docs/decisions')).map((name) => `docs/decisions/${name}`),
]
const operations = read('docs/OPERATIONS.md')

/** The part of a page below one heading, up to the next heading of that level or a higher one. */
function section(page: string, heading: string): string {
  const lines = page.split('\n')
  const start = lines.indexOf(heading)
  if (start < 0) throw new Error(`there is no heading "${heading}"`)
  const level = heading.indexOf(' ')
  const rest = lines.slice(start + 1)
  const end = rest.findIndex((line) => new RegExp(`^#{1,${level}} `).test(line))
  return rest.slice(0, end < 0 ? undefined : end).join('\n')
}

function cells(row: string): string[] {
  return row
    .split('|')
    .slice(1, -1)
    .map((cell) => cell.trim())
}

/** The rows of the table with this head: its cells without backquotes around them. */
function table(text: string, ...head: string[]): string[][] {
  const lines = text.split('\n')
  const start = lines.findIndex((line) => cells(line).join('|') === head.join('|'))
  if (start < 0) throw new Error(`there is no table with the columns ${head.join(', ')}`)
  const rows = lines.slice(start + 2)
  const end = rows.findIndex((line) => !line.startsWith('|'))
  return rows
    .slice(0, end < 0 ? undefined : end)
    .map((row) => cells(row).map((cell) => cell.replace(/^`([^`]*)`$/, '$1')))
}

/** The code of a page: its blocks and what stands between backquotes. */
function codeOf(page: string): string {
  const blocks = /^```.*\n([\s\S]*?)^```$/gm
  const spans = page.replaceAll(blocks, '').matchAll(/`([^`]+)`/g)
  return [...page.matchAll(blocks), ...spans].map(([, code]) => code).join('\n')
}

/** The anchors that a page's headings make. */
function anchors(page: string): Set<string> {
  const headings = page.split('\n').filter((line) => /^#{1,6} /.test(line))
  return new Set(
    headings.map((line) =>
      line
        .replace(/^#+ /, '')
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )
}

t.test('every setting is in the operations page with its variable and default, and no other is', (t) => {
  const documented = table(section(operations, '## Settings'), 'setting', 'variable', 'default', 'meaning')
  t.same(
    documented.map(([path, variable, fallback]) => ({ path, variable, fallback })),
    settings.map(({ path, variable, fallback }) => ({ path, variable, fallback: fallback ?? 'unset' })),
  )
  for (const [path, , , meaning = ''] of documented) t.ok(meaning.length > 10, `${path} is described`)
  t.end()
})

t.test('every setting of a mirror is in the operations page with its default, and no other is', (t) => {
  const documented = table(
    section(operations, '### Settings of a mirror'),
    'setting of a mirror',
    'default',
    'meaning',
  )
  t.same(
    documented.map(([path, fallback]) => ({ path, fallback })),
    mirrorSettings.map(({ path, fallback }) => ({ path, fallback: fallback ?? 'unset' })),
  )
  for (const [path, , meaning = ''] of documented) t.ok(meaning.length > 10, `${path} is described`)
  t.end()
})

t.test('every setting and variable that a page or the image names exists', (t) => {
  const variables = new Set(['BOATHOUSE_CONFIG', ...settings.map(({ variable }) => variable)])
  for (const file of [...pages, 'Dockerfile', 'compose.yaml']) {
    const named = read(file).match(/BOATHOUSE_[A-Z_]+/g) ?? []
    t.same(
      named.filter((name) => !variables.has(name)),
      [],
      file,
    )
  }
  const paths = new Set(settings.map(({ path }) => path))
  const prefixes = new Set([...paths].filter((path) => path.includes('.')).map((path) => path.split('.')[0]))
  for (const file of pages) {
    const named = [...read(file).matchAll(/`([a-z]+)\.([a-zA-Z]+)`/g)]
    const unknown = named.filter(
      ([, prefix, rest]) => prefixes.has(prefix) && !paths.has(`${prefix}.${rest}`),
    )
    t.same(
      unknown.map(([text]) => text),
      [],
      file,
    )
  }
  t.end()
})

t.test('every error is in the operations page with its code and status, and no other is', (t) => {
  const documented = table(section(operations, '## Errors'), 'refused', 'code', 'status', 'when')
  t.same(
    documented.map(([kind, code, status]) => ({ kind, code, status: Number(status) })),
    Object.entries(errorTable).map(([kind, { code, status }]) => ({ kind, code, status })),
  )
  for (const [kind, , , when = ''] of documented) t.ok(when.length > 10, `${kind} is explained`)
  t.end()
})

t.test('every metric is in the operations page with its type and labels, and no other is', async (t) => {
  const mirrors = [{ name: 'docker.io', url: 'http://127.0.0.1:1', budget: '1GiB' }]
  const server = await startServer(t, { config: { mirrors } })
  await server.request('GET', '/v2/')
  // A mirror that has been asked, limited and synced: each metric has a value then.
  const db = new Database(join(server.data, 'boathouse.db'))
  const health = JSON.stringify({ answeredAt: 1, rateLimit: { limit: 100, remaining: 5 } })
  const sync = JSON.stringify({ endedAt: 1, images: 2, complete: 1 })
  db.prepare('INSERT INTO mirror (name, health, sync) VALUES (?, ?, ?)').run('docker.io', health, sync)
  db.close()
  const { text } = await server.request('GET', '/metrics')
  const types = [...text.matchAll(/^# TYPE (boathouse_\w+) (\w+)$/gm)].map(([, name = '', type]) => {
    const sample = new RegExp(`^${name}(?:_bucket)?\\{(.*)\\} `, 'm').exec(text)
    const labels = [...(sample?.[1] ?? '').matchAll(/(\w+)="/g)].map(([, label]) => label)
    return { name, type, labels: labels.filter((label) => label !== 'le').sort() }
  })
  const documented = table(
    section(operations, '## Monitoring'),
    'metric',
    'type',
    'labels',
    'what it counts',
  ).map(([name = '', type, labels = '']) => ({
    name,
    type,
    labels: [...labels.matchAll(/\w+/g)].map(([label]) => label).sort(),
  }))
  const byName = (one: { name: string }, other: { name: string }) => (one.name < other.name ? -1 : 1)
  t.same(documented.sort(byName), types.sort(byName))

  const names = new Set(types.map(({ name }) => name))
  const mentioned = pages.flatMap((file) => read(file).match(/\bboathouse_[a-z_]+\b/g) ?? [])
  t.same(
    mentioned.filter((name) => !names.has(name)),
    [],
  )
})

t.test('every table of the index is in the page about storage with its columns', async (t) => {
  const data = join(scratchDir(t), 'documented')
  const server = await startServer(t, { data })
  await server.stop()
  const db = new Database(join(data, 'boathouse.db'), { readonly: true })
  const names = db
    .prepare<[], string>("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    .pluck()
    .all()
  const actual = names.map((name) => ({
    name,
    columns: db.prepare<[string], string>('SELECT name FROM pragma_table_info(?)').pluck().all(name),
  }))
  const version = db.pragma('user_version', { simple: true })
  db.close()
  const schema = section(read('storage/README.md'), '## Schema')
  const documented = table(schema, 'table', 'columns', 'a row is').map(([name, columns = '']) => ({
    name,
    columns: columns.split(', ').map((column) => column.replaceAll('`', '')),
  }))
  t.same(documented, actual)
  t.match(schema, `Version ${version} `)
})

t.test('every file of a new data folder is in the page about storage', async (t) => {
  const data = join(scratchDir(t), 'tree')
  const server = await startServer(t, { data })
  const tree = section(read('storage/README.md'), '## Tree')
  await server.request('GET', '/v2/')
  const names = readdirSync(data)
  t.ok(names.length > 3)
  for (const name of names) t.match(tree, new RegExp(`\\b${name.replaceAll('.', '\\.')}\\b`))
})

t.test('the README begins with the two commands, and every npm command that is named exists', (t) => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> }
  const firstScreen = read('README.md').split('\n').slice(0, 25).join('\n')
  t.match(firstScreen, '```sh\nnpm ci && npm start\n```')
  t.match(read('README.md'), '```sh\nnpm test\n```')
  for (const file of [...pages, 'Dockerfile']) {
    const code = file === 'Dockerfile' ? read(file) : codeOf(read(file))
    for (const [command, run, word = ''] of code.matchAll(/\bnpm (run )?([a-z][a-z:-]*)/g)) {
      const isBuiltIn = run === undefined && ['ci', 'prune'].includes(word)
      t.ok(isBuiltIn || Object.hasOwn(scripts, word), `${file}: ${command}`)
    }
  }
  t.end()
})

t.test('every link within the project leads to something', (t) => {
  for (const file of pages) {
    for (const [, target = ''] of read(file).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue
      const [path = '', anchor] = target.split('#')
      const linked = path === '' ? file : join(dirname(file), path)
      t.ok(existsSync(join(root, linked)), `${file} → ${target}`)
      if (anchor !== undefined && statSync(join(root, linked), { throwIfNoEntry: false })?.isFile()) {
        t.ok(anchors(read(linked)).has(anchor), `${file} → ${target}`)
      }
    }
  }
  t.end()
})

t.test('every fault in the table has a test of its name, or says why it has none', (t) => {
  const rows = table(read('docs/FAULTS.md'), 'row', 'what happened', 'why not here', 'test')
  const numbers = [...range(1, 13), ...range(20, 32), ...range(50, 65)]
  const names = rows.map(([row = '']) => row)
  t.same(
    names.filter((row) => row.startsWith('R')),
    numbers.map((number) => `R${String(number).padStart(2, '0')}`),
  )
  t.same(names, [...new Set(names)], 'each stands there once')
  for (const row of names) t.match(row, /^(?:R\d{2}|S\d{2,3})$/)
  for (const [row = '', what = '', why = '', test = ''] of rows) {
    t.ok(what.length > 10 && why.length > 10, `${row} is described`)
    if (/^none: .{20}/.test(test)) continue
    const isThere = existsSync(join(root, test))
    t.ok(isThere, `${row}: ${test}`)
    const named = new RegExp(`['"\`][^'"\`]*\\b${row}\\b[^'"\`]*['"\`]`)
    t.ok(isThere && named.test(read(test)), `${row}: a test in ${test} bears its name`)
  }
  t.end()
})

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, at) => from + at)
}

t.test('every decision is in the list of decisions', (t) => {
  const list = read('docs/decisions/README.md')
  for (const name of readdirSync(join(root, 'docs/decisions'))) {
    if (name === 'README.md') continue
    t.match(name, /^(\d{4}-)?[a-z-]+\.md$/)
    t.ok(list.includes(`](${name})`), name)
  }
  t.end()
})

t.test('the changelog has a part for what is not released', (t) => {
  const unreleased = section(read('CHANGELOG.md'), '## [Unreleased]')
  t.match(unreleased, /^### Added$/m)
  t.end()
})

t.test('the map names every room, and every file that it names exists', (t) => {
  const map = read('docs/ARCHITECTURE.md')
  const rooms = readdirSync(join(root, 'src'), { withFileTypes: true }).filter((entry) => entry.isDirectory())
  for (const { name } of rooms) t.match(map, `\`src/${name}\``)
  const files = map.match(/`(?:src|storage|config|docs|test)\/[\w./-]+`/g) ?? []
  t.ok(files.length > 5)
  for (const file of files) t.ok(existsSync(join(root, file.replaceAll('`', ''))), file)
  t.end()
})
