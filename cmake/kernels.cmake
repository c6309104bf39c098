# One command per kernel of csrc/manifest.json, so that ninja compiles them in parallel and again only
# when a file that they include has changed.

set(kernels_dir ${PROJECT_BINARY_DIR}/kernels)
set(generated_dir ${PROJECT_BINARY_DIR}/generated)
set(kernel_build
  ${CMAKE_COMMAND} -E env PYTHONDONTWRITEBYTECODE=1
  --modify PYTHONPATH=path_list_prepend:${PROJECT_SOURCE_DIR}/csrc --
  ${Python_EXECUTABLE} -m kernel_build
  --repository ${PROJECT_SOURCE_DIR} --generated ${generated_dir} --output ${kernels_dir})

file(GLOB kernel_build_sources CONFIGURE_DEPENDS csrc/kernel_build/*.py)
list(FILTER kernel_build_sources EXCLUDE REGEX "/ptx_index\\.py$")  # makes the README of ptx/
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  csrc/manifest.json ${kernel_build_sources})

execute_process(COMMAND ${kernel_build} generate
  OUTPUT_VARIABLE kernel_names COMMAND_ERROR_IS_FATAL ANY)

if(PYKERNELS_KERNELS_DIR)
  execute_process(COMMAND ${kernel_build} copy ${PYKERNELS_KERNELS_DIR} COMMAND_ERROR_IS_FATAL ANY)
else()
  set(kernel_files)
  foreach(name IN LISTS kernel_names)
    set(stem ${kernels_dir}/${name})
    add_custom_command(
      OUTPUT ${stem}.ptx ${stem}.cubin ${stem}.json
      COMMAND ${kernel_build} compile ${name} --depfile ${generated_dir}/${name}.d
      DEPENDS ${generated_dir}/${name}.cu ${kernel_build_sources}
      DEPFILE ${generated_dir}/${name}.d
      COMMENT "Compiling kernel ${name}"
      VERBATIM)
    list(APPEND kernel_files ${stem}.ptx)
  endforeach()
  add_custom_target(kernels ALL DEPENDS ${kernel_files})
endif()

file(MAKE_DIRECTORY ${kernels_dir})
install(DIRECTORY ${kernels_dir}/ DESTINATION kernels)
