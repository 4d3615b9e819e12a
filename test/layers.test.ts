import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'

/*
 * The rules of the house, read off the sources: who may import whom, and what may stand where. Each rule is a
 * function from sources to faults; a test at the end shows that each of them finds what it is there to find.
 */

/** A source file: its path from the root of the project, its syntax tree, and what it imports. */
interface Source {
  readonly path: string
  readonly tree: ts.SourceFile
  /** Specifiers as they are written: of imports, re-exports and dynamic imports. */
  readonly imports: readonly string[]
  /** Relative files that it names in another way: the entries of threads and processes. */
  readonly entries: readonly string[]
}

/** One room: its files, and the files of ours that they may import beside their own. */
interface Room {
  readonly name: string
  readonly files: RegExp
  readonly imports: readonly RegExp[]
}

const oci = /^src\/oci\//
const config = /^config\//
const ports = /^storage\/(?:blob|metadata|access|collection|mirror|integrity|quota|tag)-store\.ts$/
const composition = /^src\/(?:app|stores|token-app|mending|mirror-(?:app|sync-app|states|privacy))\.ts$/
const version = /^src\/version\.ts$/

const rooms: readonly Room[] = [
  { name: 'the language', files: oci, imports: [] },
  { name: 'configuration', files: config, imports: [] },
  { name: 'storage', files: /^storage\//, imports: [oci] },
  {
    name: 'the rules',
    files: /^src\/registry\//,
    imports: [oci, /^storage\/(?:blob|metadata|collection|integrity|quota|tag)-store\.ts$/],
  },
  { name: 'access', files: /^src\/auth\//, imports: [oci, /^storage\/access-store\.ts$/] },
  {
    name: 'the mirror',
    files: /^src\/mirror\//,
    imports: [oci, /^src\/registry\//, /^storage\/(?:blob|metadata|mirror)-store\.ts$/],
  },
  { name: 'the wire', files: /^src\/http\//, imports: [oci, /^src\/registry\//, /^src\/auth\//] },
  {
    name: 'composition',
    files: composition,
    imports: [
      oci,
      config,
      version,
      /^storage\//,
      /^src\/registry\//,
      /^src\/auth\//,
      /^src\/mirror\//,
      /^src\/http\//,
    ],
  },
  {
    name: 'commands',
    files: /^src\/commands\//,
    imports: [
      config,
      composition,
      version,
      oci,
      ports,
      /^src\/auth\//,
      // What processes that serve together share.
      /^src\/http\/metrics\.ts$/,
      /^src\/registry\/(?:uploads|leases|verify(?:-[a-z]+)?|gc(?:-[a-z]+)?|retention|lived-time)\.ts$/,
      /^storage\/(?:data-folder|key-store|errors|migrations|file-(?:snapshots|backup|restore|owner))\.ts$/,
    ],
  },
  {
    name: 'the process',
    files: /^src\/main\.ts$/,
    imports: [
      config,
      composition,
      version,
      /^src\/commands\//,
      /^storage\/(?:data-folder|errors|migrations)\.ts$/,
    ],
  },
  { name: 'the version', files: version, imports: [] },
]

/** Which files may import a package. A dependency that is not here is imported by nobody. */
const packages: Readonly<Record<string, RegExp>> = {
  bcryptjs: /^src\/auth\//,
  'better-sqlite3': /^storage\/(?:sqlite-[a-z-]+|migrations)\.ts$/,
  croner: /^(?:config|src\/commands)\//,
  fastify: /^src\/(?:http\/[a-z-]+|app)\.ts$/,
  jose: /^src\/auth\//,
  pino: /^src\/(?:http\/server|app|commands\/[a-z-]+)\.ts$/,
  'pino-pretty': /^src\/commands\/logger\.ts$/,
  piscina: /^src\/(?:registry|auth)\//,
  'prom-client': /^src\/(?:http\/metrics|commands\/[a-z-]+)\.ts$/,
  semver: /^(?:config|src\/registry)\//,
  undici: /^src\/mirror\//,
  yaml: /^(?:config|src\/commands)\//,
  zod: /^(?:config|src\/auth)\//,
}

/** Which files may import a module of Node that reaches out; the others are free, but for the language. */
const modules: Readonly<Record<string, RegExp>> = {
  'node:child_process': /^$/,
  'node:cluster': /^src\/commands\//,
  'node:dgram': /^$/,
  'node:dns': /^$/,
  'node:dns/promises': /^src\/mirror\/addresses\.ts$/,
  'node:fs': /^(?:storage|config|src\/commands)\/|^src\/(?:app|token-app|version)\.ts$/,
  'node:fs/promises':
    /^(?:storage|src\/commands)\/|^src\/(?:app|token-app|mirror-app|mirror\/credentials)\.ts$/,
  'node:http': /^src\/(?:http\/|commands\/health\.ts$)/,
  'node:http2': /^$/,
  'node:https': /^src\/commands\/health\.ts$/,
  'node:process': /^$/,
  'node:repl': /^$/,
  'node:vm': /^$/,
  'node:worker_threads': /^storage\/sqlite-(?:writer|index)/,
}

/** What the language may use of Node: nothing that reads or writes. */
const pureModules = new Set(['node:crypto'])

/** Files of the storage engine that work on files; the others leave them to SQLite. */
const fileWorkers = /^storage\/(?:fs|file|directory|data|key|batch|write)-[a-z-]+\.ts$/

const longest = 400
const sqlFiles = /^storage\/(?:sqlite-[a-z-]+|migrations)\.ts$/
const sql =
  /\b(?:SELECT\b.*\bFROM\b|INSERT (?:OR [A-Z]+ )?INTO\b|UPDATE \w+ SET\b|DELETE FROM\b|(?:CREATE|DROP|ALTER) (?:TABLE|INDEX|TRIGGER|VIEW)\b|PRAGMA \w|BEGIN (?:IMMEDIATE|EXCLUSIVE)\b|SAVEPOINT \w|VACUUM INTO\b)/s
const kebabPath = /^(?:[a-z0-9]+(?:-[a-z0-9]+)*\/)*[a-z0-9]+(?:-[a-z0-9]+)*(?:\.test)?\.ts$/

// ---------------------------------------------------------------------------------------------
// Reading the sources
// ---------------------------------------------------------------------------------------------

/** The folder of the project, wherever the compiled test lies below it. */
function findRoot(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json')) && existsSync(join(folder, 'src', 'main.ts'))) return folder
    if (folder === dirname(folder)) throw new Error('the sources are not above the compiled test')
  }
}

function readSource(path: string, text: string): Source {
  const tree = ts.createSourceFile(path, text, ts.ScriptTarget.ES2023, true)
  const entries: string[] = []
  for (const node of nodesOf(tree)) {
    if (!ts.isNewExpression(node) || node.expression.getText() !== 'URL') continue
    const [first] = node.arguments ?? []
    if (first !== undefined && ts.isStringLiteral(first) && /^\.\.?\/.*\.js$/.test(first.text)) {
      entries.push(first.text)
    }
  }
  const imports = ts.preProcessFile(text, true, true).importedFiles.map(({ fileName }) => fileName)
  return { path, tree, imports, entries }
}

function* nodesOf(node: ts.Node): Generator<ts.Node> {
  yield node
  for (const child of node.getChildren()) yield* nodesOf(child)
}

function readSources(root: string, folders: readonly string[]): Source[] {
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((path) => path.endsWith('.ts'))
      .map((path) => posix.join(folder, path.replaceAll('\\', '/')))
      .sort()
      .map((path) => readSource(path, readFileSync(join(root, path), 'utf8'))),
  )
}

/** The file of ours that a relative specifier means. */
function targetOf(source: Source, specifier: string): string {
  return posix.join(posix.dirname(source.path), specifier).replace(/\.js$/, '.ts')
}

function isRelative(specifier: string): boolean {
  return specifier.startsWith('.')
}

/** Where a node stands, for a message. */
function place(source: Source, node: ts.Node): string {
  const { line } = source.tree.getLineAndCharacterOfPosition(node.getStart())
  return `${source.path}:${line + 1}`
}

// ---------------------------------------------------------------------------------------------
// The rules
// ---------------------------------------------------------------------------------------------

const roomOf = (path: string) => rooms.find(({ files }) => files.test(path))

function faultsOfRooms(sources: readonly Source[]): string[] {
  return sources.flatMap((source) => {
    const room = roomOf(source.path)
    if (room === undefined) return [`${source.path} is in no room`]
    return [...source.imports, ...source.entries]
      .filter(isRelative)
      .map((specifier) => targetOf(source, specifier))
      .filter((target) => ![room.files, ...room.imports].some((allowed) => allowed.test(target)))
      .map((target) => `${source.path} (${room.name}) imports ${target}`)
  })
}

/** The engine that is used is chosen in one place: nobody else names a driver. */
function faultsOfDrivers(sources: readonly Source[]): string[] {
  const driver = /^storage\/(?:fs|sqlite)-/
  return sources
    .filter(({ path }) => !path.startsWith('storage/') && !/^src\/stores\.ts$/.test(path))
    .flatMap((source) =>
      source.imports
        .filter((specifier) => isRelative(specifier) && driver.test(targetOf(source, specifier)))
        .map((specifier) => `${source.path} names the driver ${targetOf(source, specifier)}`),
    )
}

function faultsOfSpecifiers(sources: readonly Source[]): string[] {
  const known = new Set(sources.map(({ path }) => path))
  return sources.flatMap((source) =>
    [...source.imports, ...source.entries].flatMap((specifier) => {
      if (!isRelative(specifier)) return []
      if (!specifier.endsWith('.js')) return [`${source.path} imports ${specifier} without .js`]
      if (!known.has(targetOf(source, specifier)))
        return [`${source.path} imports ${specifier}, which is not there`]
      return []
    }),
  )
}

function faultsOfPackages(sources: readonly Source[]): string[] {
  return sources.flatMap((source) =>
    source.imports.flatMap((specifier) => {
      if (isRelative(specifier)) return []
      if (!specifier.startsWith('node:')) {
        const name = specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/')
        return packages[name]?.test(source.path) ? [] : [`${source.path} imports the package ${name}`]
      }
      const isFree = oci.test(source.path)
        ? pureModules.has(specifier)
        : (modules[specifier]?.test(source.path) ?? true)
      return isFree ? [] : [`${source.path} imports ${specifier}`]
    }),
  )
}

/** SQLite alone opens its files: closing another descriptor of them would drop its locks. */
function faultsOfFiles(sources: readonly Source[]): string[] {
  return sources
    .filter(({ path }) => path.startsWith('storage/') && !fileWorkers.test(path))
    .flatMap((source) =>
      [...nodesOf(source.tree)]
        .filter(ts.isImportDeclaration)
        .filter(({ moduleSpecifier }) => /^'node:fs/.test(moduleSpecifier.getText()))
        .filter(({ importClause }) => importClause?.getText() !== '{ stat }')
        .map((node) => `${place(source, node)} works on files`),
    )
}

function faultsOfSql(sources: readonly Source[]): string[] {
  return sources
    .filter(({ path }) => !sqlFiles.test(path))
    .flatMap((source) =>
      [...nodesOf(source.tree)]
        .filter((node) => ts.isStringLiteralLike(node) || ts.isTemplateExpression(node))
        .filter((node) => sql.test(node.getText()))
        .map((node) => `${place(source, node)} has SQL in it`),
    )
}

function faultsOfEnvironment(sources: readonly Source[]): string[] {
  return sources
    .filter(({ path }) => path !== 'config/load.ts')
    .flatMap((source) =>
      [...nodesOf(source.tree)]
        .filter((node) => ts.isIdentifier(node) && node.text === 'process' && usesEnvironment(node.parent))
        .map((node) => `${place(source, node)} reads the environment`),
    )
}

/** Whether `process` is used here for its `env`, or in a way that might hand it on. */
function usesEnvironment(parent: ts.Node): boolean {
  if (ts.isPropertyAccessExpression(parent)) return parent.name.text === 'env'
  if (ts.isPropertyAssignment(parent) || ts.isPropertySignature(parent)) return false
  return (
    ts.isElementAccessExpression(parent) || ts.isVariableDeclaration(parent) || ts.isSpreadAssignment(parent)
  )
}

function faultsOfTypes(sources: readonly Source[]): string[] {
  return sources.flatMap((source) => {
    const anys = [...nodesOf(source.tree)]
      .filter(({ kind }) => kind === ts.SyntaxKind.AnyKeyword)
      .map((node) => `${place(source, node)} says any`)
    const silenced = source.tree.text
      .split('\n')
      .flatMap((line, at) => (/@ts-(?:ignore|expect-error|nocheck)/.test(line) ? [at + 1] : []))
      .map((line) => `${source.path}:${line} silences the compiler`)
    return [...anys, ...silenced]
  })
}

function faultsOfShape(sources: readonly Source[]): string[] {
  return sources.flatMap(({ path, tree }) => {
    const faults: string[] = []
    const lines = tree.text.replace(/\n$/, '').split('\n').length
    if (lines > longest && !/^(?:test|bench)\//.test(path)) faults.push(`${path} has ${lines} lines`)
    if (!kebabPath.test(path)) faults.push(`${path} is not in kebab-case`)
    return faults
  })
}

/** Cycles of files that import each other; a type is an import like any other. */
function faultsOfCycles(sources: readonly Source[]): string[] {
  const targets = new Map(
    sources.map((source) => [
      source.path,
      source.imports.filter(isRelative).map((specifier) => targetOf(source, specifier)),
    ]),
  )
  const done = new Set<string>()
  const faults: string[] = []
  function visit(path: string, trail: readonly string[]): void {
    const start = trail.indexOf(path)
    if (start >= 0) {
      faults.push([...trail.slice(start), path].join(' → '))
      return
    }
    if (done.has(path)) return
    for (const target of targets.get(path) ?? []) visit(target, [...trail, path])
    done.add(path)
  }
  for (const path of targets.keys()) visit(path, [])
  return faults
}

// ---------------------------------------------------------------------------------------------
// The tests
// ---------------------------------------------------------------------------------------------

const root = findRoot()
const product = readSources(root, ['src', 'storage', 'config'])
const everything = [...product, ...readSources(root, ['test', 'bench'])]

t.test('the sources are all here', async (t) => {
  for (const path of [
    'src/main.ts',
    'src/app.ts',
    'src/oci/digest.ts',
    'storage/blob-store.ts',
    'config/load.ts',
  ]) {
    t.ok(
      product.some((source) => source.path === path),
      path,
    )
  }
  t.ok(
    product.every(({ tree }) => tree.statements.length > 0),
    'and none is empty',
  )
})

t.test('who imports whom', async (t) => {
  t.strictSame(faultsOfRooms(product), [], 'each room imports only what it may')
  t.strictSame(faultsOfDrivers(product), [], 'one file alone names the drivers')
  t.strictSame(
    faultsOfSpecifiers(everything),
    [],
    'every import is of a file that is there, by its compiled name',
  )
  t.strictSame(faultsOfCycles(product), [], 'no files import each other in a circle')
})

t.test('which packages and modules are used where', async (t) => {
  t.strictSame(faultsOfPackages(product), [], 'each in its place')
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  t.strictSame(
    Object.keys(packages).sort(),
    Object.keys(dependencies).sort(),
    'each dependency has its place',
  )
  const used = new Set(product.flatMap(({ imports }) => imports))
  for (const name of Object.keys(dependencies)) t.ok(used.has(name), `${name} is used`)
})

t.test('what stands where', async (t) => {
  t.strictSame(faultsOfFiles(product), [], 'SQLite’s files are left to SQLite')
  t.strictSame(faultsOfSql(product), [], 'SQL stands in the SQLite driver and the migrations')
  t.strictSame(faultsOfEnvironment(product), [], 'the environment is read in config/load.ts')
})

t.test('how sources are written', async (t) => {
  t.strictSame(faultsOfTypes(everything), [], 'nothing is any, and the compiler is heard')
  t.strictSame(
    faultsOfShape(everything),
    [],
    `files are in kebab-case, and none has more than ${longest} lines`,
  )
})

t.test('each rule finds what it is there to find', async (t) => {
  const faulty = (rule: (sources: readonly Source[]) => string[], files: Record<string, string>) =>
    rule(Object.entries(files).map(([path, text]) => readSource(path, text))).length
  const finds = (rule: (sources: readonly Source[]) => string[], files: Record<string, string>, count = 1) =>
    t.equal(faulty(rule, files), count, `${rule.name}: ${JSON.stringify(files)}`)

  finds(faultsOfRooms, { 'src/oci/a.ts': "import { b } from '../../storage/errors.js'" })
  finds(faultsOfRooms, { 'src/oci/a.ts': "import type { b } from '../http/b.js'" })
  finds(faultsOfRooms, { 'src/oci/a.ts': "export { b } from '../auth/b.js'" })
  finds(faultsOfRooms, { 'config/a.ts': "import { b } from '../src/oci/b.js'" })
  finds(faultsOfRooms, { 'storage/a.ts': "import { b } from '../src/registry/b.js'" })
  finds(faultsOfRooms, { 'src/registry/a.ts': "import { b } from '../../storage/fs-blob-store.js'" })
  finds(faultsOfRooms, { 'src/registry/a.ts': "const b = await import('../http/b.js')" })
  finds(faultsOfRooms, { 'src/registry/a.ts': "const b = new URL('../http/b.js', import.meta.url)" })
  finds(faultsOfRooms, { 'src/http/a.ts': "import type { b } from '../../storage/blob-store.js'" })
  finds(faultsOfRooms, { 'src/http/a.ts': "import type { b } from '../../config/schema.js'" })
  finds(faultsOfRooms, { 'src/commands/a.ts': "import { b } from '../http/server.js'" })
  finds(faultsOfRooms, { 'src/app.ts': "import { b } from './commands/serve.js'" })
  finds(faultsOfRooms, { 'src/utils.ts': '' })
  finds(faultsOfRooms, { 'src/http/a.ts': "import { b } from '../oci/b.js'\nimport { c } from './c.js'" }, 0)
  finds(faultsOfDrivers, { 'src/app.ts': "import { b } from '../storage/sqlite-metadata-store.js'" })
  finds(faultsOfDrivers, { 'src/stores.ts': "import { b } from '../storage/fs-blob-store.js'" }, 0)
  finds(faultsOfSpecifiers, { 'src/a.ts': "import './b'", 'src/b.ts': "import './c.js'" }, 2)
  finds(faultsOfSpecifiers, { 'src/a.ts': "new Worker(new URL('./gone.js', import.meta.url))" })
  finds(faultsOfCycles, { 'src/a.ts': "import './b.js'", 'src/b.ts': "import type { a } from './a.js'" })
  finds(faultsOfCycles, {
    'src/a.ts': "import './b.js'",
    'src/b.ts': "import './c.js'",
    'src/c.ts': "import './b.js'",
  })
  finds(faultsOfCycles, { 'src/a.ts': "import './b.js'\nimport './c.js'", 'src/b.ts': "import './c.js'" }, 0)
  finds(faultsOfPackages, { 'src/registry/a.ts': "import { fastify } from 'fastify'" })
  finds(faultsOfPackages, { 'src/http/a.ts': "import Database from 'better-sqlite3'" })
  finds(faultsOfPackages, { 'src/http/a.ts': "import left from 'left-pad'\nimport b from '@scope/b/c'" }, 2)
  finds(faultsOfRooms, { 'src/mirror/a.ts': "import { b } from '../http/b.js'" })
  finds(faultsOfPackages, { 'src/http/a.ts': "import { request } from 'undici'" })
  finds(faultsOfPackages, { 'src/mirror/a.ts': "import { lookup } from 'node:dns/promises'" })
  finds(faultsOfPackages, { 'src/oci/a.ts': "import { readFile } from 'node:fs/promises'" })
  finds(faultsOfPackages, { 'src/oci/a.ts': "import { setTimeout } from 'node:timers'" })
  finds(faultsOfPackages, { 'src/http/a.ts': "import fs from 'node:fs'" })
  finds(faultsOfPackages, { 'src/commands/a.ts': "import { exec } from 'node:child_process'" })
  finds(faultsOfPackages, { 'src/http/a.ts': "import fs from 'fs'" })
  finds(faultsOfFiles, { 'storage/sqlite-a.ts': "import { open } from 'node:fs/promises'" })
  finds(faultsOfFiles, { 'storage/sqlite-a.ts': "import { stat } from 'node:fs/promises'" }, 0)
  finds(faultsOfSql, { 'src/registry/a.ts': "db.prepare('SELECT name FROM tag')" })
  finds(faultsOfSql, { 'storage/fs-a.ts': 'db.exec(`DELETE FROM ` + table)' })
  finds(faultsOfSql, { 'src/http/a.ts': '// SELECT a FROM b\nroute("DELETE", "/a")' }, 0)
  finds(faultsOfEnvironment, { 'src/http/a.ts': 'const a = process.env.A' })
  finds(faultsOfEnvironment, { 'src/http/a.ts': "const a = process['env']" })
  finds(faultsOfEnvironment, { 'src/http/a.ts': 'const { env } = process' })
  finds(faultsOfPackages, { 'src/http/a.ts': "import { env } from 'node:process'" })
  finds(faultsOfEnvironment, { 'src/http/a.ts': 'process.exit(1)', 'config/load.ts': 'process.env' }, 0)
  finds(faultsOfTypes, { 'src/a.ts': 'const a: any = 1', 'src/b.ts': 'const a = 1 as unknown as any[]' }, 2)
  finds(faultsOfTypes, { 'src/a.ts': `// @ts-${'ignore'}\nconst any = "any"` })
  finds(faultsOfShape, { 'src/a.ts': 'a\n'.repeat(401), 'src/b.ts': 'a\n'.repeat(400) })
  finds(faultsOfShape, { 'src/blobStore.ts': '', 'src/Auth/a.ts': '', 'test/a_b.test.ts': '' }, 3)
})
