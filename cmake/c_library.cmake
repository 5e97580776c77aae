# libresfuse: models that resfuse.save has written, from C and C++. `find_package(resfuse)` finds what is installed here.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(resfuse SHARED ${capi_sources})
add_library(resfuse::resfuse ALIAS resfuse)
target_link_libraries(resfuse PRIVATE resfuse_engine OpenMP::OpenMP_CXX)
target_include_directories(resfuse INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/capi>
                           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
if(RESFUSE_SANITIZE)  # what is linked to it in this build needs the same runtime first
  target_compile_options(resfuse INTERFACE $<BUILD_INTERFACE:-fsanitize=${RESFUSE_SANITIZE}>)
  target_link_options(resfuse INTERFACE $<BUILD_INTERFACE:-fsanitize=${RESFUSE_SANITIZE}>)
endif()

if(SKBUILD)
  # The wheel resfuse-runtime: one library beside its Python files, whatever Python that is.
  install(TARGETS resfuse LIBRARY DESTINATION resfuse_runtime)
  install(DIRECTORY python/resfuse/runtime/ DESTINATION resfuse_runtime FILES_MATCHING PATTERN "*.py")
else()
  set_target_properties(resfuse PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 1)
  install(TARGETS resfuse EXPORT resfuse)
  install(FILES csrc/capi/resfuse.h csrc/capi/resfuse.hpp TYPE INCLUDE)
  set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/resfuse)
  install(EXPORT resfuse FILE resfuseConfig.cmake NAMESPACE resfuse:: DESTINATION ${package_dir})
  write_basic_package_version_file(resfuseConfigVersion.cmake COMPATIBILITY SameMajorVersion)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/resfuseConfigVersion.cmake DESTINATION ${package_dir})
endif()
